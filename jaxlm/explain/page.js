// Shows the texts that pass the filters, each with its words coloured by one method or by all, one line per method.
const all = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const best = p => p.indexOf(Math.max(...p));
let rule = null;

function made(kind, name, content) {
  const element = document.createElement(kind);
  element.className = name;
  if (content !== undefined) element.textContent = content;
  return element;
}

function words(text, scores) {
  const line = made("span", "words");
  text.words.forEach((word, i) => {
    const e = made("span", text.marked && text.marked[i] ? "w m" : "w", word);
    const score = scores[i];
    e.style.background = score > 0 ? `rgba(230,90,40,${score * 0.75})` : `rgba(40,110,220,${-score * 0.75})`;
    e.title = score;
    line.append(e, " ");
  });
  return line;
}

function passes(text) {
  const says = best(text.p), wanted = at("says").value, right = at("right").value;
  const query = at("word").value.toLowerCase();
  if (wanted !== "" && says != wanted) return false;
  if (right !== "" && (text.label === null || (text.label === says) !== (right === "1"))) return false;
  if (query && !text.words.some(word => word.toLowerCase().includes(query))) return false;
  return rule === null || text.rules.includes(rule);
}

function show() {
  const method = at("method").value, box = at("texts"), shown = all.texts.filter(passes);
  box.textContent = "";
  for (const text of shown) {
    const each = made("div", "text");
    const says = text.p.map((p, i) => all.classes[i] + " " + (100 * p).toFixed(1) + "%").join(", ");
    const people = text.label === null ? "" : "; people: " + all.classes[text.label];
    each.append(made("div", "says", "model: " + says + people + (text.marked ? "; underlined: marked by people" : "")));
    for (const [name, scores] of Object.entries(text.scores)) {
      if (method && name !== method) continue;
      const row = made("div", "row");
      row.append(made("span", "name", name), words(text, scores));
      each.append(row);
    }
    box.append(each);
  }
  at("count").textContent = shown.length + " of " + all.texts.length + " texts";
}

["method", "says", "right", "word"].forEach(id => at(id).addEventListener("input", show));
document.querySelectorAll("#rules tbody tr").forEach(row => row.addEventListener("click", () => {
  const number = Number(row.dataset.rule);
  rule = rule === number ? null : number;
  document.querySelectorAll("#rules tr").forEach(o => o.classList.toggle("on", o === row && rule !== null));
  show();
}));
show();
