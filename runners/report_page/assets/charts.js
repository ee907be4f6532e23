// Line and bar charts: an SVG that arrow keys and pointers read off, and a table of its numbers.

const HEIGHT = 300, LEFT = 52, RIGHT = 12, TOP = 22, BOTTOM = 44;
let WIDTH = 720;

// Draw into an element at its width, and anew where that changes: letters keep their size.
const drawings = new Map();

function mount(element, chart) {
  drawings.set(element, chart);
  render(element);
}

function render(element) {
  WIDTH = Math.max(260, Math.min(980, element.clientWidth));
  element.replaceChildren(drawings.get(element)());
}

let resizing;
addEventListener("resize", () => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => [...drawings.keys()].forEach(render));
});

// Round numbers that divide a range into some five parts.
function ticksOf(low, high, count = 5) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) ticks.push(at * step + 0);
  return {ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9))};
}

function frame(label, xLabel, yTicks, yAt, digits) {
  const svg = draw("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0, "aria-label": label});
  for (const tick of yTicks) {
    const y = yAt(tick);
    svg.append(
      draw("line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y}),
      draw("text", {class: "soft", x: LEFT - 8, y: y + 4, "text-anchor": "end"}, tick.toFixed(digits)));
  }
  svg.append(draw("text", {class: "soft", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle"}, xLabel));
  return svg;
}

// The figure around a chart: legend, what the cursor reads, and the numbers as a table.
function figure(svg, legend, caption, columns, rows) {
  const readout = make("p", {class: "readout", role: "status"});
  const body = make("tbody");
  const details = make("details", {on: {toggle: () => {
    if (!body.childElementCount) body.append(...rows().map((row) => make("tr", {}, row.map((cell) => make("td", {}, cell)))));
  }}}, make("summary", {}, "Numbers"),
  make("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": caption},
    make("table", {}, make("thead", {}, make("tr", {}, columns.map((one) => make("th", {scope: "col"}, one)))), body)));
  return {element: make("figure", {}, legend, svg, make("figcaption", {class: "hint"}, caption), readout, details), readout};
}

function legendOf(entries) {
  return make("ul", {class: "legend"}, entries.map(({name, mark}) =>
    make("li", {}, draw("svg", {viewBox: "0 0 28 12", "aria-hidden": "true"}, mark), name)));
}

// A cursor over the columns of a chart, for pointers, fingers and arrow keys.
function cursor(svg, count, xOf, read, chosen = null) {
  const width = WIDTH;
  let at = null;
  const line = draw("line", {class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden"});
  svg.append(line);
  const go = (to) => {
    at = Math.max(0, Math.min(count - 1, to));
    line.setAttribute("x1", xOf(at));
    line.setAttribute("x2", xOf(at));
    line.setAttribute("visibility", "visible");
    read(at);
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * width;
    let best = 0;
    for (let one = 1; one < count; one++) if (Math.abs(xOf(one) - x) < Math.abs(xOf(best) - x)) best = one;
    return best;
  };
  svg.addEventListener("pointermove", (event) => go(nearest(event)));
  svg.addEventListener("pointerdown", (event) => go(nearest(event)));
  if (chosen) svg.addEventListener("click", (event) => chosen(nearest(event)));
  svg.addEventListener("keydown", (event) => {
    const moves = {ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -count, End: count};
    if (event.key in moves) {
      const start = event.key === "End" ? 0 : -moves[event.key];
      go((at === null ? start : at) + moves[event.key]);
      event.preventDefault();
    } else if (chosen && at !== null && (event.key === "Enter" || event.key === " ")) {
      chosen(at);
      event.preventDefault();
    }
  });
}

// series: [{name, steps, values, half}], null where a value is missing, half the width of half an
// interval; marks: [{name, x}] upright lines; levels: [{name, y}] level ones.
function lineChart({label, caption, xLabel, series, marks = [], levels = [], digits = 3}) {
  const edge = (one, at, sign) => one.values[at] + sign * (one.half ? one.half[at] : 0);
  const all = series.flatMap((one) => one.values.flatMap((value, at) => value === null ? [] : [edge(one, at, -1), edge(one, at, 1)]));
  if (all.length) all.push(...levels.map((one) => one.y));
  const steps = [...new Set(series.flatMap((one) => one.steps))].sort((a, b) => a - b);
  if (!all.length) return make("p", {class: "hint"}, "There is nothing to draw.");
  let [low, high] = [Math.min(...all), Math.max(...all)];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [low - room, high + room];
  const first = steps[0], last = steps[steps.length - 1];
  const xOf = (step) => LEFT + (last === first ? 0.5 : (step - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const yOf = (value) => HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
  const y = ticksOf(low, high);
  const svg = frame(label, xLabel, y.ticks, yOf, y.digits);
  for (const tick of ticksOf(first, last, Math.max(3, Math.floor(WIDTH / 90))).ticks) {
    const anchor = xOf(tick) > WIDTH - 40 ? "end" : "middle";
    svg.append(draw("text", {class: "soft", x: anchor === "end" ? WIDTH : xOf(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": anchor}, grouped(tick)));
  }
  series.forEach((one, number) => {
    const style = `line c${number % 5 + 1} d${number % 5 + 1}`;
    if (one.half) {
      const along = (sign) => one.steps.map((step, at) => `${xOf(step).toFixed(1)} ${yOf(edge(one, at, sign)).toFixed(1)}`);
      svg.append(draw("path", {class: `band f${number % 5 + 1}`, d: `M${[...along(1), ...along(-1).reverse()].join("L")}Z`}));
    }
    let path = "", pen = false;
    one.values.forEach((value, at) => {
      if (value === null) { pen = false; return; }
      path += `${pen ? "L" : "M"}${xOf(one.steps[at]).toFixed(1)} ${yOf(value).toFixed(1)}`;
      pen = true;
    });
    svg.append(draw("path", {class: style, d: path}));
  });
  for (const {name, x} of marks) {
    svg.append(
      draw("line", {class: "cursor", x1: xOf(x), x2: xOf(x), y1: TOP, y2: HEIGHT - BOTTOM}),
      draw("text", {class: "soft", x: xOf(x) + (x > (first + last) / 2 ? -5 : 5), y: TOP - 8, "text-anchor": x > (first + last) / 2 ? "end" : "start"}, name));
  }
  for (const {name, y: level} of levels) {
    svg.append(
      draw("line", {class: "cursor", x1: LEFT, x2: WIDTH - RIGHT, y1: yOf(level), y2: yOf(level)}),
      draw("text", {class: "soft", x: WIDTH - RIGHT, y: yOf(level) - 4, "text-anchor": "end"}, `${name}, ${fixed(level, digits)}`));
  }
  const named = series.filter((one) => one.name);
  const legend = legendOf(named.map((one) => {
    const number = series.indexOf(one) % 5 + 1;
    return {name: one.name, mark: draw("line", {class: `line c${number} d${number}`, x1: 0, x2: 28, y1: 6, y2: 6})};
  }));
  const at = series.map((one) => new Map(one.steps.map((step, place) => [step, one.values[place]])));
  const cells = (step) => at.map((one) => one.has(step) ? fixed(one.get(step), digits) : "");
  const {element, readout} = figure(svg, legend, caption, [xLabel, ...series.map((one) => one.name || label)],
    () => steps.map((step) => [grouped(step), ...cells(step)]));
  cursor(svg, steps.length, (place) => xOf(steps[place]), (place) => {
    const values = cells(steps[place]).map((cell, number) => cell && `${series[number].name || label} ${cell}`);
    readout.textContent = visible(`${xLabel} ${grouped(steps[place])}: ${values.filter(Boolean).join(", ")}`);
  });
  return element;
}

// series: [{name, values}] of one value for each of the columns 0, 1, ...; stacked, or side by side.
// marks: [{name, at, sign}] below columns; frame: the column that is chosen.
function barChart({label, caption, xLabel, series, stacked = false, marks = [], chosen = null, choose = null, digits = 3}) {
  const count = series[0].values.length;
  const totals = Array.from({length: count}, (_, at) => series.reduce((sum, one) => sum + one.values[at], 0));
  const high = Math.max(...(stacked ? totals : series.flatMap((one) => one.values)), 1e-9);
  const y = ticksOf(0, high);
  const top = high * 1.05;
  const slot = (WIDTH - LEFT - RIGHT) / count;
  const xOf = (at) => LEFT + (at + 0.5) * slot;
  const yOf = (value) => HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
  const svg = frame(label, xLabel, y.ticks, yOf, y.digits);
  const every = Math.ceil(count * 24 / (WIDTH - LEFT - RIGHT));
  for (let at = 0; at < count; at++) {
    if (at % every === 0) svg.append(draw("text", {class: "soft", x: xOf(at), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle"}, String(at)));
    let base = 0;
    series.forEach((one, number) => {
      const value = one.values[at];
      const width = slot * 0.8 / (stacked ? 1 : series.length);
      const x = xOf(at) - slot * 0.4 + (stacked ? 0 : number * width);
      const height = Math.max(0, yOf(0) - yOf(value));
      svg.append(draw("rect", {class: `bar f${number % 5 + 1}`, x: x.toFixed(1), y: (yOf(base) - height).toFixed(1), width: width.toFixed(1), height: height.toFixed(1)}));
      if (stacked) base += value;
    });
  }
  for (const {at, sign} of marks) {
    if (at !== null) svg.append(draw("text", {x: xOf(at), y: yOf(stacked ? totals[at] : Math.max(...series.map((one) => one.values[at]))) - 4, "text-anchor": "middle"}, sign));
  }
  if (chosen !== null && chosen < count) {
    svg.append(draw("rect", {class: "frame", x: xOf(chosen) - slot / 2, y: yOf(totals[chosen]), width: slot, height: yOf(0) - yOf(totals[chosen])}));
  }
  const legend = legendOf([
    ...series.map((one, number) => ({name: one.name, mark: draw("rect", {class: `f${number % 5 + 1}`, x: 8, width: 12, height: 12})})),
    ...marks.filter((one) => one.at !== null).map((one) => ({name: `${one.name} (${one.at})`, mark: draw("text", {x: 14, y: 11, "text-anchor": "middle"}, one.sign)})),
  ]);
  const row = (at) => [...series.map((one) => fixed(one.values[at], digits)), ...(stacked ? [fixed(totals[at], digits)] : [])];
  const {element, readout} = figure(svg, legend, caption, [xLabel, ...series.map((one) => one.name), ...(stacked ? ["sum"] : [])],
    () => totals.map((_, at) => [String(at), ...row(at)]));
  cursor(svg, count, xOf, (at) => {
    const names = [...series.map((one) => one.name), ...(stacked ? ["sum"] : [])];
    readout.textContent = `${xLabel} ${at}: ` + row(at).map((cell, number) => `${names[number]} ${cell}`).join(", ");
  }, choose);
  return element;
}
