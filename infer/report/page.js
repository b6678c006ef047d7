"use strict";
// A click on a column's head sorts the table by it, a second one the other way; a click on a picture shows it at full size.
for (const head of document.querySelectorAll("thead th")) {
  const table = head.closest("table");
  head.tabIndex = 0;
  const sort = () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[head.cellIndex].textContent.trim();
    const number = (text) => (text === "" ? NaN : Number(text.replaceAll(",", "").replace("−", "-").replace("%", "")));
    const order = (a, b) => {
      const [x, y] = [number(value(a)), number(value(b))];
      if (Number.isNaN(x) || Number.isNaN(y)) {
        if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // words after numbers, either way
        return (up ? 1 : -1) * value(a).localeCompare(value(b), undefined, { numeric: true });
      }
      return (up ? 1 : -1) * (x - y);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter") sort();
  });
}
for (const image of document.querySelectorAll("figure img")) {
  image.addEventListener("click", () => image.closest("figure").classList.toggle("zoomed"));
}
