// Counts the filled fields and saves them as JSON Lines, the way read_sheet takes them.
const button = document.getElementById("save"), state = document.getElementById("state");
const fields = [...document.querySelectorAll("[data-id]")];
const show = () => {
  state.textContent = fields.filter(f => f.value.trim()).length + " of " + fields.length + " filled in";
};
fields.forEach(f => f.addEventListener("input", show));
show();
button.addEventListener("click", () => {
  const lines = fields.map(f => JSON.stringify({ id: f.dataset.id, [button.dataset.key]: f.value.trim() }) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = "sheet_filled.jsonl";
  link.click();
});
