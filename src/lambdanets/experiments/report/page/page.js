"use strict";
// Pointing at a mark or at a name of the legend shows the text of the mark and fades the other series.
for (const figure of document.querySelectorAll("figure")) {
  // Drawn twice, for large and for small screens; one of them is shown.
  const charts = [...figure.querySelectorAll(".chart")];
  const readout = figure.querySelector(".readout");
  const hint = readout.textContent;
  const parts = [...figure.querySelectorAll(".mark")];
  const show = (series, text) => {
    for (const chart of charts) chart.classList.toggle("chosen", series !== undefined);
    for (const mark of parts) mark.classList.toggle("on", mark.dataset.series === series);
    readout.textContent = text;
  };
  const rest = () => {
    const chosen = parts.find((mark) => mark === document.activeElement);
    if (chosen) show(chosen.dataset.series, chosen.getAttribute("aria-label"));
    else show(undefined, hint);
  };
  for (const mark of parts) {
    for (const event of ["pointerenter", "focus", "click"]) {
      mark.addEventListener(event, () => show(mark.dataset.series, mark.getAttribute("aria-label")));
    }
    mark.addEventListener("pointerleave", rest);
    mark.addEventListener("blur", () => show(undefined, hint));
  }
  for (const name of figure.querySelectorAll(".legend li[data-series]")) {
    const own = [...charts[0].querySelectorAll(`.mark[data-series="${name.dataset.series}"]`)];
    const text = own.map((mark) => mark.getAttribute("aria-label")).join("; ");
    for (const event of ["pointerenter", "click"]) name.addEventListener(event, () => show(name.dataset.series, text));
    name.addEventListener("pointerleave", rest);
  }
}
// A table that can be scrolled to the right is shaded there.
for (const table of document.querySelectorAll(".wide")) {
  const shade = () =>
    table.parentElement.classList.toggle("more", table.scrollLeft + table.clientWidth < table.scrollWidth - 1);
  table.addEventListener("scroll", shade);
  new ResizeObserver(shade).observe(table);
  shade();
}
document.documentElement.dataset.ready = "";
