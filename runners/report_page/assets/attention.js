// The attention of one query: every head small, one head large with its tokens.

// Bytes are 255 times the root of a weight; see `packed` in sample.py.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const LABEL = 118, LONGEST = 14;

class AttentionView {
  constructor() {
    this.heads = byId("heads");
    this.canvas = byId("matrix");
    this.cell = byId("cell");
    this.query = null;
    this.bytes = null;
    this.depth = 0;
    this.head = 0;
    this.at = null;
    onColours(() => this.render());
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  // The weights of one query, and the depth that is shown; depths are followed by the standard.
  async show(query, depth) {
    if (query !== this.query) {
      this.query = query;
      this.at = null;
      this.cell.textContent = "";
      this.bytes = null;
      const bytes = await unpacked(query.attention);
      if (query !== this.query) return;
      this.bytes = bytes;
      this.head = Math.min(this.head, query.heads - 1);
      this.makeHeads();
    } else if (!this.bytes) {
      this.depth = depth;
      return;
    }
    this.depth = depth;
    this.render();
  }

  weight(head, row, column) {
    const n = this.query.tokens.length;
    const root = this.bytes[((this.depth * this.query.heads + head) * n + row) * n + column] / 255;
    return root * root;
  }

  makeHeads() {
    this.heads.replaceChildren(...Array.from({length: this.query.heads}, (_, head) =>
      make("button", {type: "button", "aria-pressed": "false", on: {click: () => { this.head = head; this.render(); }}},
        make("canvas", {width: 1, height: 1, "aria-hidden": "true"}), `head ${head + 1}`)));
  }

  shade() {
    const [low, high] = [rgb("--heat-low"), rgb("--heat-high")];
    return (weight) => low.map((one, at) => Math.round(one + (high[at] - one) * Math.sqrt(weight)));
  }

  render() {
    if (!this.bytes) return;
    const n = this.query.tokens.length;
    [...this.heads.children].forEach((button, head) => {
      button.setAttribute("aria-pressed", String(head === this.head));
      this.pixels(button.firstChild, head, n);
    });
    this.large(n);
  }

  pixels(canvas, head, n) {
    canvas.width = canvas.height = Math.max(1, n);
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
    const shade = this.shade();
    for (let row = 0; row < n; row++) {
      for (let column = 0; column < n; column++) {
        image.data.set([...shade(this.weight(head, row, column)), 255], 4 * (row * n + column));
      }
    }
    context.putImageData(image, 0, 0);
  }

  large(n) {
    const canvas = this.canvas, tokens = this.query.tokens;
    const room = byId("matrix-scroll").clientWidth - LABEL - 2;
    this.size = Math.max(14, Math.min(34, Math.floor(room / Math.max(1, n))));
    const side = LABEL + n * this.size + 1, ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(side * ratio);
    canvas.style.width = canvas.style.height = side + "px";
    const context = canvas.getContext("2d"), shade = this.shade();
    context.scale(ratio, ratio);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.fillStyle = colour("--text");
    tokens.forEach((token, at) => {
      const middle = LABEL + (at + 0.5) * this.size, shown = short(token, LONGEST);
      context.textAlign = "right";
      context.fillText(shown, LABEL - 6, middle);
      context.save();
      context.translate(middle, LABEL - 6);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(shown, 0, 0);
      context.restore();
    });
    for (let row = 0; row < n; row++) {
      for (let column = 0; column < n; column++) {
        context.fillStyle = `rgb(${shade(this.weight(this.head, row, column)).join()})`;
        context.fillRect(LABEL + column * this.size, LABEL + row * this.size, this.size, this.size);
      }
    }
    context.strokeStyle = colour("--line");
    context.strokeRect(LABEL - 0.5, LABEL - 0.5, n * this.size + 1, n * this.size + 1);
    if (this.at) {
      context.strokeStyle = colour("--two");
      context.lineWidth = 2;
      context.strokeRect(LABEL + this.at[1] * this.size, LABEL + this.at[0] * this.size, this.size, this.size);
    }
    const where = this.depth === DATA.depths.ndcg.length ? "standard attention" : `depth ${this.depth}`;
    canvas.setAttribute("aria-label", `Weights of head ${this.head + 1} at ${where}, ${n} by ${n} tokens. Arrow keys read them.`);
    byId("attention-title").textContent = `Attention at ${where}, head ${this.head + 1}`;
    this.say();
  }

  say() {
    if (!this.at) return;
    const [row, column] = this.at, tokens = this.query.tokens;
    this.cell.textContent = `\u201c${short(tokens[row], 40)}\u201d attends to \u201c${short(tokens[column], 40)}\u201d: ` +
      fixed(this.weight(this.head, row, column)) + ` (token ${row + 1} to ${column + 1})`;
  }

  point(event) {
    if (!this.bytes) return;
    const n = this.query.tokens.length;
    const [column, row] = [event.offsetX, event.offsetY].map((one) => Math.floor((one - LABEL) / this.size));
    if (row < 0 || column < 0 || row >= n || column >= n) return;
    if (this.at && this.at[0] === row && this.at[1] === column) return;
    this.at = [row, column];
    this.large(n);
  }

  key(event) {
    const moves = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
    const n = this.bytes ? this.query.tokens.length : 0;
    if (!(event.key in moves) || !n) return;
    event.preventDefault();
    const inside = (value) => Math.max(0, Math.min(n - 1, value));
    this.at = this.at ? this.at.map((one, axis) => inside(one + moves[event.key][axis])) : [0, 0];
    this.large(n);
  }
}
