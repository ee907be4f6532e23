// One query and one depth: what it is paid, how it attends, what it finds.

class Explorer {
  constructor() {
    this.queries = DATA.sample.queries;
    this.depths = DATA.depths.ndcg.length;
    this.standard = this.depths; // what stands behind the depths in rankings and attention
    this.at = 0;
    this.depth = 0;
    this.attention = new AttentionView();
    this.found = this.queries.map((_, at) => at);
    this.texts = this.queries.map((one) => [one.text, one.id, one.tokens.join(" ")].join("\n").toLowerCase());
  }

  start() {
    const sample = DATA.sample;
    byId("sample").textContent = `${grouped(this.queries.length)} of ${grouped(sample.of)} test queries: ` +
      "half of them those where depths differ most in nDCG@10, half evenly spread over the others.";
    if (!this.queries.length) {
      byId("problem").textContent = "The run has no test query to look at.";
      byId("problem").hidden = false;
      return;
    }
    byId("depth").max = this.depths - 1;
    byId("search").addEventListener("input", () => this.search());
    byId("query").addEventListener("change", (event) => this.go(Number(event.target.value)));
    byId("previous").addEventListener("click", () => this.step(-1));
    byId("next").addEventListener("click", () => this.step(1));
    byId("depth").addEventListener("input", (event) => this.choose(Number(event.target.value)));
    new ResizeObserver(() => this.attention.render()).observe(byId("matrix-scroll"));
    this.list();
    const asked = location.hash.startsWith("#query=") ? location.hash.slice(7).split(",").map(Number) : [];
    this.go(this.queries[asked[0]] ? asked[0] : this.first(), asked[1]);
  }

  search() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    this.found = this.queries.map((_, at) => at).filter((at) => words.every((word) => this.texts[at].includes(word)));
    byId("matches").textContent = words.length ? `${this.found.length} of ${this.queries.length} queries` : "";
    this.list();
    if (this.found.length && !this.found.includes(this.at)) this.go(this.found[0]);
  }

  list() {
    const select = byId("query");
    select.replaceChildren(...this.found.map((at) =>
      make("option", {value: at, selected: at === this.at}, short(this.queries[at].text || this.queries[at].id, 90))));
    select.disabled = !this.found.length;
    byId("previous").disabled = byId("next").disabled = this.found.length < 2;
  }

  step(by) {
    const place = this.found.indexOf(this.at);
    this.go(this.found[(place + by + this.found.length) % this.found.length]);
  }

  go(at, depth) {
    this.at = at;
    const query = this.queries[at];
    byId("query").value = at;
    byId("text").textContent = visible(query.text) || "(no text)";
    const relevant = Object.keys(query.relevant).length;
    byId("facts").textContent = `${visible(query.id)} \u00b7 ${query.tokens.length} tokens \u00b7 ${relevant} relevant ` +
      (relevant === 1 ? "document" : "documents");
    this.makeJumps(query);
    this.choose(Number.isInteger(depth) && depth >= 0 && depth <= this.standard ? depth : query.chosen);
  }

  makeJumps(query) {
    const jumps = [["Router's choice", query.chosen], ["Best", query.best]];
    if (DATA.depths.best_fixed !== null) jumps.push(["Best fixed", DATA.depths.best_fixed]);
    byId("jumps").replaceChildren(
      ...jumps.map(([name, depth]) => this.jump(`${name}: ${depth}`, depth)), this.jump("Standard attention", this.standard));
  }

  jump(name, depth) {
    return make("button", {type: "button", value: depth, "aria-pressed": "false", on: {click: () => this.choose(depth)}}, name);
  }

  choose(depth) {
    this.depth = depth;
    const query = this.queries[this.at], standard = depth === this.standard;
    if (!standard) byId("depth").value = depth;
    byId("depth").setAttribute("aria-valuetext", standard ? "standard attention" : `depth ${depth}`);
    byId("number").textContent = standard ? "\u2013 standard attention" : depth;
    for (const button of byId("jumps").children) button.setAttribute("aria-pressed", String(Number(button.value) === depth));
    byId("says").textContent = standard
      ? `Standard attention: nDCG@10 ${fixed(query.ndcg[depth])}; it is not a depth and has no reward.`
      : `Depth ${depth}${this.roles(query, depth)}: reward ${fixed(query.terms.reward[depth])} = entropy ${fixed(query.terms.entropy[depth])}, ` +
        `focus ${fixed(query.terms.focus[depth])}, alignment ${fixed(query.terms.alignment[depth])}, each times its weight. ` +
        `nDCG@10 ${fixed(query.ndcg[depth])}.`;
    this.showTerms(query);
    this.showRankings(query);
    this.attention.show(query, depth).catch((error) => {
      byId("cell").textContent = "This browser cannot unpack the attention: " + visible(error);
    });
    history.replaceState(null, "", `#query=${this.at},${depth}`);
  }

  showTerms(query) {
    const weights = DATA.run.weights;
    const series = ["entropy", "focus", "alignment"].map((name, at) =>
      ({name: `${weights[at]} \u00d7 ${name}`, values: query.terms[name].map((value) => weights[at] * value)}));
    const focused = byId("terms").contains(document.activeElement);
    mount(byId("terms"), () => barChart({
      label: "Terms of the reward of every depth", caption: "Choose a depth by a click, or with arrow keys and Enter.",
      xLabel: "depth", stacked: true, series, chosen: this.depth, choose: (depth) => this.choose(depth),
      marks: [
        {name: "router's choice", at: query.chosen, sign: "\u25bc"},
        {name: "best", at: query.best, sign: "\u2605"},
        {name: "best fixed", at: DATA.depths.best_fixed, sign: "\u25c6"},
      ],
    }));
    if (focused) byId("terms").querySelector("svg[tabindex]").focus({preventScroll: true});
  }

  showRankings(query) {
    const columns = [["Shown", this.depth], ["Best", query.best], ["Standard", this.standard]];
    byId("rankings").replaceChildren(...columns.map(([name, place]) => make("section", {"aria-label": name},
      make("h4", {}, `${name}: ${place === this.standard ? "standard attention" : "depth " + place}`),
      make("p", {class: "hint"}, `nDCG@10 ${fixed(query.ndcg[place])}` + this.roles(query, place)),
      make("ol", {}, query.rankings[place].map(([document, score]) => this.document(query, document, score))))));
  }

  roles(query, depth) {
    const roles = [["the router's choice", query.chosen], ["best", query.best], ["best fixed", DATA.depths.best_fixed]];
    const own = roles.filter(([, one]) => one === depth).map(([name]) => name);
    return own.length ? ", " + own.join(", ") : "";
  }

  // Where a visitor starts: with the query that depends most on the depth.
  first() {
    const depths = this.queries.map((one) => one.ndcg.slice(0, this.depths));
    const ranges = depths.map((one) => Math.max(...one) - Math.min(...one));
    return ranges.indexOf(Math.max(...ranges));
  }

  document(query, place, score) {
    const {id, text} = DATA.sample.documents[place];
    const grade = query.relevant[place];
    const more = make("button", {type: "button", "aria-expanded": "false", on: {click: () => {
      const open = item.classList.toggle("open");
      more.textContent = open ? "less" : "more";
      more.setAttribute("aria-expanded", String(open));
    }}}, "more");
    const item = make("li", {class: grade ? "relevant" : null},
      make("div", {class: "head"}, make("span", {class: "id"}, id), make("span", {}, `cosine ${fixed(score)}`)),
      grade ? make("span", {class: "badge"}, grade === 1 ? "\u2713 relevant" : `\u2713 relevant, grade ${grade}`) : null,
      make("p", {class: "snippet"}, text || "(no text)"),
      text.length > 140 ? more : null);
    return item;
  }
}

setUpTheme();
showTitle();
showTable();
showDepths();
showCurves();
showSettings();
new Explorer().start();
