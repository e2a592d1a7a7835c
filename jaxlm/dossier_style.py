"""How the audit report looks, and the few lines that filter its tables."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#dfe4ea;--paper:#f6f7f9;--card:#fff;
--good:#11734b;--goodbg:#dff3e8;--warn:#8a5a00;--warnbg:#fdf0d2;--bad:#a3212d;--badbg:#fbe0e2;--accent:#2f5fd0}
@media (prefers-color-scheme:dark){:root{--ink:#e5e9ef;--soft:#9aa6b5;--line:#2d3643;--paper:#12161c;--card:#1a2029;
--good:#6fd3a4;--goodbg:#163528;--warn:#f0c465;--warnbg:#3a2e12;--bad:#ff8f98;--badbg:#43191d;--accent:#8fb0ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:84rem;padding:1.5rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header{display:flex;justify-content:space-between;gap:2rem;flex-wrap:wrap;align-items:flex-end}
h1{margin:0;font-size:2rem;letter-spacing:-.02em;overflow-wrap:anywhere}h2{margin:0 0 .8rem;font-size:1.2rem}
h3{margin:1.2rem 0 .5rem;font-size:1rem}
.over,.about,.state p,figcaption,.none{margin:.2rem 0;color:var(--soft)}
.over{text-transform:uppercase;letter-spacing:.12em;font-size:.75rem}
.about{overflow-wrap:anywhere}.state{max-width:26rem;text-align:right}
nav{position:sticky;top:0;z-index:2;display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;padding:.7rem 0;margin:.8rem 0;
background:var(--paper);border-bottom:1px solid var(--line)}
nav a{color:var(--accent);text-decoration:none}nav a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.8rem}
.tile,section,figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.2rem}
.tile{color:var(--soft)}.tile b{display:block;font-size:1.5rem;color:var(--ink);font-variant-numeric:tabular-nums}
section{margin:1rem 0;scroll-margin-top:3.2rem}figure{margin:1rem 0}
svg{width:100%;height:9rem;display:block}
polyline{fill:none;stroke:var(--accent);stroke-width:2;vector-effect:non-scaling-stroke}
circle{fill:var(--soft)}circle.good{fill:var(--good)}circle.bad{fill:var(--bad)}circle.warn{fill:var(--warn)}
.wide{overflow-x:auto}.tall{max-height:34rem;overflow-y:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th{text-align:left;font-weight:600;color:var(--soft);background:var(--card)}
thead th{position:sticky;top:0;z-index:1}
th,td{padding:.4rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}
td.body{overflow-wrap:anywhere;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.8rem;min-width:24rem}
td.time,td.place{white-space:nowrap;font-variant-numeric:tabular-nums}
code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.85em;overflow-wrap:anywhere}
ul{margin:0;padding:0;list-style:none}li{margin:.25rem 0;overflow-wrap:anywhere}
.badge{display:inline-block;padding:.05rem .55rem;border-radius:.8rem;font-size:.8rem;font-weight:600;
background:var(--line);color:var(--soft)}
.badge.good{background:var(--goodbg);color:var(--good)}.badge.warn{background:var(--warnbg);color:var(--warn)}
.badge.bad{background:var(--badbg);color:var(--bad)}
.kind{font-weight:600;white-space:nowrap}.pair b{font-weight:600;color:var(--soft)}
.filters{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin-bottom:.8rem}
.filters input[type=search],select{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);
border-radius:8px;padding:.35rem .6rem;min-width:15rem}
.chip{border:1px solid var(--line);border-radius:99px;padding:.1rem .6rem;font-size:.85rem;cursor:pointer}
.shown{color:var(--soft);font-size:.85rem;margin-left:auto}
tr.framework th{background:var(--paper);color:var(--ink)}
th.stage,td.stage{text-align:center;font-size:.78rem;min-width:5rem}
td.stage i{display:inline-block;min-width:1.5rem;height:1.5rem;line-height:1.4rem;padding:0 .35rem;border-radius:99px;
border:1px dashed var(--line);font-style:normal}
td.stage i.full{background:var(--goodbg);color:var(--good);border:0;font-weight:600}
td.stage i.half{background:var(--goodbg);border:0}
@media print{nav,.filters{display:none}.tall{max-height:none}section{break-inside:avoid-page}}
"""

SCRIPT = """
for (const box of document.querySelectorAll('.filters')) {
  const rows = [...document.querySelectorAll('#' + box.dataset.for + ' tbody tr')];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const search = box.querySelector('input[type=search]'), choice = box.querySelector('select');
  const only = box.querySelector('.only'), kinds = [...box.querySelectorAll('.chip input:not(.only)')];
  const apply = () => {
    const wanted = new Set(kinds.filter((kind) => kind.checked).map((kind) => kind.value));
    const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, at) => {
      const head = row.classList.contains('framework'), data = row.dataset;
      const good = (!kinds.length || wanted.has(data.type)) && (!choice || !choice.value || choice.value === data.type)
        && (head || !only || !only.checked || data.supported === '1')
        && (head || words.every((word) => texts[at].includes(word)));
      row.hidden = !good;
      shown += good && !head;
    });
    box.querySelector('.shown').textContent = shown + ' shown';
  };
  box.addEventListener('input', apply);
  apply();
}
"""
