"use strict";
// Tables sort by a click on a heading; without scripts they stand in their first order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, place) => {
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
      // Numbers begin with the highest, words with the first.
      const isNumber = heading.classList.contains("number");
      const order = before ? (before === "descending" ? "ascending" : "descending") : isNumber ? "descending" : "ascending";
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const isUnknown = (each) => typeof each === "number" && Number.isNaN(each);
      const rows = [...body.rows].map((row) => ({ row, key: value(row, place) }));
      rows.sort((one, other) => {
        // What is undefined stands last in either order.
        if (isUnknown(one.key) || isUnknown(other.key)) return isUnknown(one.key) - isUnknown(other.key);
        return sign * compare(one.key, other.key);
      });
      body.append(...rows.map((each) => each.row));
    });
  });
}
