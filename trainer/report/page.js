"use strict";
// Clicking a heading sorts its table; without scripts, tables keep their initial order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const sortKey = (row, place) => {
    const cell = row.cells[place];
    if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
    return cell.textContent.trim();
  };
  const compare = (one, other) => {
    const areNumbers = typeof one === "number" && typeof other === "number";
    return areNumbers ? one - other : String(one).localeCompare(String(other), undefined, { numeric: true });
  };
  headings.forEach((heading, place) => {
    if (!heading.textContent.trim()) return; // a button needs a name
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      // The first click sorts numbers in descending order, text in alphabetical order.
      const isNumber = heading.classList.contains("number");
      const order = before ? (before === "descending" ? "ascending" : "descending") : isNumber ? "descending" : "ascending";
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const isUndefined = (each) => typeof each === "number" && Number.isNaN(each);
      const rows = [...body.rows].map((row) => ({ row, key: sortKey(row, place) }));
      rows.sort((one, other) => {
        // Undefined values are last in either order.
        if (isUndefined(one.key) || isUndefined(other.key)) return isUndefined(one.key) - isUndefined(other.key);
        return sign * compare(one.key, other.key);
      });
      body.append(...rows.map((each) => each.row));
    });
  });
}
