"use strict";
(() => {
const rows = [...document.querySelectorAll("tbody tr")].map((row) => ({ row, text: row.textContent.toLowerCase() }));
const search = document.getElementById("search"), closed = new Set();
function show() {
  const needle = search.value.trim().toLowerCase();
  let count = 0;
  for (const { row, text } of rows) {
    const fits = text.includes(needle) && !closed.has(row.dataset.word);
    row.hidden = !fits;
    row.style.display = fits ? "" : "none";
    count += fits;
  }
  document.getElementById("count").textContent = count === rows.length ? `${count} tests` : `${count} of ${rows.length} tests`;
}
for (const button of document.querySelectorAll("button")) button.addEventListener("click", () => {
  const word = button.dataset.word;
  if (!closed.delete(word)) closed.add(word);
  button.setAttribute("aria-pressed", String(!closed.has(word)));
  show();
});
search.addEventListener("input", show);
document.addEventListener("keydown", (event) => { if (event.key === "/" && event.target !== search) { event.preventDefault(); search.focus(); } });
show();
})();
