"""How the HTML page looks: light, dark, on a phone, on paper. Nothing is fetched."""

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #59636e;
  --line: #d8dde3; --panel: #f5f7f9; --accent: #0b63c5; --compute: #0b63c5; --wait: #b06a00;
  --deal: #7a4fb5; --transfer: #2a8a8a; --s3: #a8325e; --s4: #5d7a3a; --s5: #59636e;
  --warn: #fff3d6; --warn-ink: #5c3d00; --bad: #a61b1b;
  --good: #1a6b35; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --soft: #a2abb5;
  --line: #353c44; --panel: #1d2226; --accent: #6cb2ff; --compute: #5aa5f5; --wait: #e0a13c;
  --deal: #b796ea; --transfer: #5cc4c4; --s3: #f08bb0; --s4: #a3c277; --s5: #a2abb5;
  --warn: #43320a; --warn-ink: #ffe2a0; --bad: #ff9a90;
  --good: #7fd69a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.25rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
section + section.run { border-top: 2px solid var(--line); margin-top: 2.5rem; padding-top: 1rem; }
p, ul { margin: .4rem 0; }
.soft, caption, .legend { color: var(--soft); font-size: .875rem; }
.banner { background: var(--warn); color: var(--warn-ink); border-left: .4rem solid currentColor;
  padding: .6rem .9rem; margin: .6rem 0; }
.banner.loud { font-weight: 700; font-size: 1.1rem; }
.tiles { display: grid; gap: .75rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr)); }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  overflow-wrap: normal; }
td { white-space: nowrap; } a { color: var(--accent); }
th:first-child { text-align: left; }
tbody th { font-weight: 400; min-width: 8rem; }
figure { margin: .5rem 0; }
.bar { display: grid; grid-template-columns: 11rem 1fr 8.5rem; gap: .6rem; align-items: center;
  margin: .2rem 0; font-size: .875rem; }
.bar svg { width: 100%; height: .8rem; display: block; background: var(--panel); }
.bar .value { text-align: right; font-variant-numeric: tabular-nums; }
.key { margin-right: 1rem; display: inline-block; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem;
  vertical-align: -.1rem; background: var(--compute); }
rect { fill: var(--compute); }
rect.wait { fill: var(--wait); } .swatch.wait { background: var(--wait); }
rect.deal { fill: var(--deal); } .swatch.deal { background: var(--deal); }
rect.transfer { fill: var(--transfer); } .swatch.transfer { background: var(--transfer); }
rect.size { fill: var(--s5); }
.lead { font-size: 1.05rem; max-width: 46rem; }
.plots { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); }
.plots:empty { display: none; }
.plotted { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  padding: .6rem .8rem; margin: 0; max-width: 42rem; }
figcaption { font-weight: 600; font-size: .875rem; margin-bottom: .25rem; }
.plot { width: 100%; height: auto; display: block; font-size: 12px; }
.plot text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.plot .grid { stroke: var(--line); stroke-width: 1; }
.plot polyline { fill: none; stroke-width: 2.25; stroke: var(--series); }
.plot .dashed { stroke-dasharray: 6 4; }
.plot circle { fill: var(--series); stroke: var(--panel); stroke-width: 1; }
.swatch.s0, .swatch.s1, .swatch.s2, .swatch.s3, .swatch.s4, .swatch.s5 {
  background: var(--series); border-radius: 50%; }
.s0 { --series: var(--compute); } .s1 { --series: var(--wait); } .s2 { --series: var(--deal); }
.s3 { --series: var(--s3); } .s4 { --series: var(--s4); } .s5 { --series: var(--s5); }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0 0 .25rem 1rem; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 700; }
blockquote, pre { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem;
  margin: .5rem 0; padding: .6rem .9rem; white-space: pre-wrap; }
pre { font: .8125rem/1.45 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 40rem) { body { padding: .9rem; }
  td { white-space: normal; } th, td { padding: .3rem .35rem; } tbody th { min-width: 5rem; }
  .bar { grid-template-columns: 1fr auto; gap: 0 .6rem; margin: .5rem 0; }
  .bar svg { grid-column: 1 / -1; grid-row: 2; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444;
    --panel: #f4f4f4; --line: #bbb; --warn: #fff; --warn-ink: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; } td { white-space: normal; }
  .scroll { overflow: visible; }
  h2, h3, h4 { break-after: avoid; } .tile, .bar, tr, .plotted { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
