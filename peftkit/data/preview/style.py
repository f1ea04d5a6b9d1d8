"""The style of a preview's page. Colours have a contrast of at least 4.5 on their background."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1b2330; --soft: #576275; --line: #dde2ea;
  --learned: #d3f0dc; --learned-2: #c0e8cd; --learned-ink: #0a3d20; --learned-line: #2f9e5c;
  --cut: #fbe3de; --cut-2: #f7d5ce; --cut-ink: #7c2415; --special: #e9eef8; --special-ink: #2b4780;
  --bar: #4a7fc1; --warn: #fff4d6; --warn-ink: #5c4300; --warn-line: #e0b23c; }
@media (prefers-color-scheme: dark) { :root {
  --page: #11151c; --card: #1a202a; --ink: #e4e9f2; --soft: #a0abbd; --line: #313a49;
  --learned: #15402a; --learned-2: #1c5236; --learned-ink: #c5f5d6; --learned-line: #4cc27f;
  --cut: #4a211b; --cut-2: #5a2a22; --cut-ink: #ffc9bd; --special: #25324c; --special-ink: #b5ccff;
  --bar: #6fa3e3; --warn: #3a2f10; --warn-ink: #ffe3a0; --warn-line: #b58a22; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
.sub { color: var(--soft); margin: .3rem 0 1.2rem; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.warnings { background: var(--warn); color: var(--warn-ink); border: 1px solid var(--warn-line);
  border-radius: 12px; padding: .7rem 1rem .7rem 2.2rem; margin: 0 0 1.2rem; }
.warnings li { margin: .15rem 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .7rem;
  margin: 0; }
.tiles div { padding: .65rem .75rem; }
.tiles dt { color: var(--soft); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 650; line-height: 1.25; }
.tiles small { display: block; font-size: .78rem; font-weight: 400; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .4rem 1.1rem; color: var(--soft); font-size: .88rem;
  margin: 0 0 .7rem; }
.legend .t { padding: .05rem .4rem; color: var(--ink); }
.legend .t.l { color: var(--learned-ink); }
.legend .t.c { color: var(--cut-ink); }
.legend .t.s { color: var(--special-ink); }
.tabs { display: flex; flex-wrap: wrap; gap: .35rem; }
.tabs > input { position: absolute; opacity: 0; pointer-events: none; }
.tabs > label { padding: .25rem .7rem; border: 1px solid var(--line); border-radius: 999px;
  background: var(--card); color: var(--soft); font-size: .88rem; cursor: pointer; }
.tabs > label.noted::after { content: ""; display: inline-block; width: .45rem; height: .45rem;
  border-radius: 50%; background: var(--warn-line); margin-left: .4rem; vertical-align: .08rem; }
.tabs > label:hover { color: var(--ink); }
.tabs > input:checked + label { background: var(--ink); color: var(--card);
  border-color: var(--ink); }
.tabs > input:focus-visible + label { outline: 3px solid var(--bar); outline-offset: 2px; }
.tabs > article { display: none; order: 1; width: 100%; padding: .9rem 1.1rem 1.1rem;
  margin-top: .35rem; }
.tabs > input:checked + label + article { display: block; }
article header { display: flex; flex-wrap: wrap; gap: 0 1rem; justify-content: space-between;
  color: var(--soft); font-size: .85rem; border-bottom: 1px solid var(--line);
  padding-bottom: .5rem; margin-bottom: .7rem; overflow-wrap: anywhere; }
h3 { font-size: .78rem; font-weight: 600; color: var(--soft); margin: 1rem 0 .25rem;
  overflow-wrap: anywhere; }
h3:first-of-type { margin-top: 0; }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.85;
  font: .93rem/1.85 ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono", monospace; }
.t { border-radius: 3px; padding: .12rem 0; }
.t:hover { outline: 2px solid var(--bar); }
.r { box-shadow: inset 0 -1px 0 var(--line); }
.r:nth-child(even) { box-shadow: inset 0 -1px 0 var(--soft); }
.l { background: var(--learned); color: var(--learned-ink);
  box-shadow: inset 0 -2px 0 var(--learned-line); }
.l:nth-child(even) { background: var(--learned-2); }
.c { background: var(--cut); color: var(--cut-ink); text-decoration: line-through; }
.c:nth-child(even) { background: var(--cut-2); }
.s { font-size: .82em; border: 1px solid var(--line); background: var(--special);
  color: var(--special-ink); padding: .08rem .2rem; border-radius: 5px; box-shadow: none; }
.s.l { background: var(--learned); color: var(--learned-ink); border-color: var(--learned-line); }
.s.c { background: var(--cut); color: var(--cut-ink); }
.text b { font-weight: 400; color: var(--soft); }
.l b { color: inherit; opacity: .75; }
.c b { color: inherit; opacity: .75; }
b.n::before { content: "↵"; }
b.p { position: relative; }
b.p::before { content: "·"; position: absolute; left: .1em; }
b.u::before { content: attr(data-u); font-size: .7em; border: 1px dashed; border-radius: 3px;
  padding: 0 .15rem; }
.tag { font: 600 .68rem/1 system-ui, sans-serif; background: var(--learned-ink);
  color: var(--learned); border-radius: 4px; padding: .1rem .25rem; margin: 0 .1rem 0 .2rem;
  vertical-align: 12%; user-select: none; }
.tag.o { background: none; color: inherit; opacity: .8; font-weight: 400; padding: 0; }
.c .tag { background: var(--cut-ink); color: var(--cut); display: inline-block; }
.gap { color: var(--soft); font-style: italic; }
.note { margin: .7rem 0 0; padding-left: .7rem; border-left: 3px solid var(--warn-line);
  font-size: .9rem; overflow-wrap: anywhere; }
.picture { display: block; min-width: 6rem; max-width: 100%; border-radius: 6px;
  image-rendering: pixelated; }
figure + figure .picture { width: 100%; height: 5.5rem; image-rendering: auto; }
figure { margin: 0 0 .6rem; } figcaption { color: var(--soft); font-size: .82rem; }
.chart, .wave { display: block; width: 100%; height: auto; }
.wave { height: 70px; } .wave .read { fill: var(--bar); } .wave .cut { fill: var(--cut-ink); }
.chart text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.chart .axis { stroke: var(--line); } .bar { fill: var(--bar); }
.chart line.limit { stroke: var(--cut-ink); stroke-dasharray: 4 3; }
.chart text.limit { fill: var(--cut-ink); }
.pad { padding: .9rem 1.1rem; }
.bars { display: grid; grid-template-columns: minmax(3rem, max-content) 1fr; gap: .25rem .8rem;
  font-size: .9rem; align-items: center; }
.bars .name { max-width: 16rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .row { color: var(--soft); white-space: nowrap; padding-right: 4rem; }
.bars i { display: inline-block; height: .8rem; min-width: 2px; background: var(--bar);
  border-radius: 2px; vertical-align: -1px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; font-weight: 400; color: var(--soft); vertical-align: top;
  padding: .3rem 1rem .3rem 0; width: 11rem; }
td { padding: .3rem 0; overflow-wrap: anywhere; }
tr + tr > * { border-top: 1px solid var(--line); }
@media (max-width: 34rem) { th { width: 7rem; } .tabs > article { padding: .8rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .chart text { font-size: 18px; } }
"""
