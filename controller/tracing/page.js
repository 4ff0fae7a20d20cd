"use strict";
const details = document.getElementById("details");
const chosen = (index) => {
  for (const element of document.querySelectorAll("[data-span]"))
    if (element.tagName === "BUTTON") element.setAttribute("aria-pressed", String(element.dataset.span === index));
  for (const part of details.querySelectorAll("[data-details]")) part.hidden = part.dataset.details !== index;
};
for (const element of document.querySelectorAll("[data-span]")) {
  element.addEventListener("click", () => chosen(element.dataset.span));
  element.addEventListener("keydown", (event) => {
    const group = [...element.closest("[data-keys]").querySelectorAll("[data-span]")];
    const moves = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
    const at = group.indexOf(element);
    const to = event.key === "Home" ? 0 : event.key === "End" ? group.length - 1 : at + (moves[event.key] || 0);
    if (event.key === "Enter" || event.key === " ") chosen(element.dataset.span);
    else if (to === at || !group[to]) return;
    else { group[to].focus(); chosen(group[to].dataset.span); }
    event.preventDefault();
  });
}
chosen("0");
