// Everything that is about the whole run: title, table, depths, curves, settings.

function showTitle() {
  const run = DATA.run;
  const alignment = run.alignment === "ndcg" ? "nDCG@10" : "listwise mass";
  const weights = run.weights.map((weight) => String(weight));
  document.title = visible(run.name) + " \u2013 a run of maw_gym";
  byId("name").textContent = visible(run.name);
  byId("about").textContent = visible(
    `${run.learner} on ${run.dataset}, ${grouped(run.queries)} test queries. ` +
    `Reward: ${weights[0]} entropy + ${weights[1]} focus + ${weights[2]} ${alignment}.`);
}

function showTable() {
  const {columns, rows} = DATA.table;
  const table = byId("table"), body = make("tbody");
  let sorted = null, descending = true;
  const heads = ["method", ...columns].map((name, at) => make("th", {scope: "col"},
    make("button", {type: "button", on: {click: () => sort(at)}}, name)));
  const render = () => {
    const value = (row) => sorted === 0 ? row.name : row.values[sorted - 1];
    const order = sorted === null ? rows : [...rows].sort((left, right) => {
      const [one, other] = [value(left), value(right)];
      if (one === null || other === null) return (one === null) - (other === null);
      const ascending = sorted === 0 ? one.localeCompare(other) : one - other;
      return descending ? -ascending : ascending;
    });
    body.replaceChildren(...order.map((row) => make("tr", {class: row.own ? "own" : null},
      make("th", {scope: "row"}, row.own ? `${row.name} (this run)` : row.name),
      row.values.map((cell) => make("td", {}, fixed(cell, digitsOf(DATA.run.queries)))))));
  };
  const sort = (at) => {
    descending = sorted === at ? !descending : at > 0;
    sorted = at;
    heads.forEach((head, place) => {
      if (place === at) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    render();
  };
  table.append(make("thead", {}, make("tr", {}, heads)), body);
  render();
}

function showDepths() {
  const depths = DATA.depths;
  const numbers = depths.ndcg.map((_, at) => at);
  const named = {"nDCG@10": depths.ndcg, entropy: depths.profile.entropy, focus: depths.profile.focus, reward: depths.profile.reward};
  const intervals = depths.intervals || {};
  const marks = depths.best_fixed === null ? [] : [{name: `best fixed depth ${depths.best_fixed}`, x: depths.best_fixed}];
  const places = Object.fromEntries(Object.keys(named).map((name) => {
    const place = make("div");
    byId("profile").append(make("section", {"aria-label": name}, make("h4", {}, name), place));
    return [name, place];
  }));
  // Only now: a chart is drawn as wide as its place is among the others.
  for (const [name, values] of Object.entries(named)) {
    mount(places[name], () => lineChart({
      label: `Mean ${name} of each depth`, caption: "Mean over all test queries, with its 95% interval.", xLabel: "depth", marks,
      digits: digitsOf(DATA.run.queries), series: [{name: "", steps: numbers, values, half: intervals[name]}],
    }));
  }
  const sum = depths.chosen.reduce((left, right) => left + right, 0) || 1;
  const share = (counts) => counts.map((one) => 100 * one / sum);
  mount(byId("usage"), () => barChart({
    label: "Share of test queries that each depth is chosen for, and is best for",
    caption: "Share of test queries in percent: what the router chooses, and the depth of largest reward.",
    xLabel: "depth", digits: 1,
    series: [{name: "chosen by the router", values: share(depths.chosen)}, {name: "best for the query", values: share(depths.best)}],
  }));
}

function showCurves() {
  const select = byId("curve"), place = byId("curves");
  if (!DATA.curves.length) {
    select.disabled = true;
    place.append(make("p", {class: "hint"}, "The run has left no learning curves."));
    return;
  }
  DATA.curves.forEach((chart, at) => select.append(make("option", {value: at}, short(chart.title, 80))));
  const render = () => {
    const chart = DATA.curves[Number(select.value)];
    mount(place, () => lineChart({
      label: visible(chart.title), caption: "Over training, by training queries seen.", xLabel: "training queries",
      digits: 4, series: chart.curves, levels: chart.levels || [],
    }));
  };
  select.addEventListener("change", render);
  render();
}

function showSettings() {
  byId("config").append(make("tbody", {}, DATA.run.settings.map(([name, value]) =>
    make("tr", {}, make("th", {scope: "row"}, name), make("td", {}, value)))));
}
