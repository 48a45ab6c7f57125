"use strict";
// Pointing at a mark or at a name of the legend shows the text of the mark and fades the other series.
for (const figure of document.querySelectorAll("figure")) {
  const chart = figure.querySelector(".chart");
  const readout = figure.querySelector(".readout");
  const hint = readout.textContent;
  const parts = [...chart.querySelectorAll(".mark")];
  const show = (series, text) => {
    chart.classList.toggle("chosen", series !== undefined);
    for (const mark of parts) mark.classList.toggle("on", mark.dataset.series === series);
    readout.textContent = text;
  };
  for (const mark of parts) {
    for (const event of ["pointerenter", "focus", "click"]) {
      mark.addEventListener(event, () => show(mark.dataset.series, mark.getAttribute("aria-label")));
    }
    for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, () => show(undefined, hint));
  }
  for (const name of figure.querySelectorAll(".legend li")) {
    const own = parts.filter((mark) => mark.dataset.series === name.dataset.series);
    name.addEventListener("pointerenter", () => show(name.dataset.series, own.map((mark) => mark.getAttribute("aria-label")).join("; ")));
    name.addEventListener("pointerleave", () => show(undefined, hint));
  }
}
document.documentElement.dataset.ready = "";
