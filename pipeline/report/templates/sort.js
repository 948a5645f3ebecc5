(() => {
  "use strict";
  // The tables are complete without this: it turns their headings into buttons that reorder rows.
  const NUMBER = /-?\d+(?:\.\d+)?(?:e[+-]?\d+)?/i;

  const key = (row, column, numeric) => {
    const text = row.cells[column].textContent.trim();
    if (!numeric) return text;
    const found = text.replaceAll(",", "").replaceAll("\u2212", "-").match(NUMBER);
    return found ? Number(found[0]) : null;
  };

  const compare = (a, b, numeric) =>
    numeric ? a - b : a.localeCompare(b, "en", { numeric: true });

  const sorted = (rows, column, numeric, sign) => {
    const known = [], absent = [];  // what was not measured stays below in either direction
    for (const row of rows) {
      const value = key(row, column, numeric);
      (value === null || value === "" ? absent : known).push([value, row]);
    }
    known.sort((a, b) => sign * compare(a[0], b[0], numeric));
    return [...known, ...absent].map((pair) => pair[1]);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], original = [...body.rows], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const numeric = head.classList.contains("right");
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
        const order = next === undefined ? "ascending" : next;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (order) head.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        body.append(...(order ? sorted(original, column, numeric, sign) : original));
      });
    });
  }
})();
