// The controls of a map. Names and labels are other people's text: they become text nodes, never HTML.
"use strict";

(async () => {
  const LARGE_SELECTION = 300; // points; fewer are drawn larger, to be found
  const FAINT = "#9a9a9a33"; // as points beside selected ones
  const THUMBNAIL = 128; // pixels of the longer side on the screen
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const item = JSON.parse(byId("figure").textContent);
  if (!hasGpu()) item.doc.roots[0].attributes.output_backend = "canvas";
  const views = await Bokeh.embed.embed_item(item);
  const view = views.get_by_id(item.root_id);
  const renderer = view.model.renderers[0];
  const source = renderer.data_source;
  const size = renderer.glyph.size.value;

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const floats = (text) => new Float32Array(bytes(text));
  const integers = (text) => new Int32Array(bytes(text));

  for (const block of data.blocks) block.x = floats(block.x), block.y = floats(block.y);
  for (const fact of data.facts) fact.codes = integers(fact.codes);
  for (const colouring of data.colourings) {
    if (colouring.kind === "classes") colouring.codes = integers(colouring.codes);
    else colouring.values = floats(colouring.values);
  }
  const squares = integers(data.thumbnails.squares);
  const sizes = new Uint8Array(bytes(data.thumbnails.sizes));
  let unmatched = false; // what is searched for is nowhere: all points are faint
  const texts = data.names.map((name, i) => (name + "\n" + (data.labelled ? textOf(data.facts[0], i) : "")).toLowerCase());

  // WebGL computed in software takes five times as long as the canvas; only the driver's name tells
  function hasGpu() {
    const gl = document.createElement("canvas").getContext("webgl");
    if (gl === null) return false;
    let driver = gl.getParameter(gl.RENDERER);
    if (driver === "WebKit WebGL") { // Chromium and Safari keep it there
      const info = gl.getExtension("WEBGL_debug_renderer_info");
      driver = info === null ? "" : gl.getParameter(info.UNMASKED_RENDERER_WEBGL);
    }
    return !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(driver);
  }

  function textOf(fact, i) {
    return fact.codes[i] < 0 ? "" : fact.texts[fact.codes[i]];
  }

  function element(kind, className, text) {
    const made = document.createElement(kind);
    made.className = className;
    made.textContent = text;
    return made;
  }

  // what is drawn

  function coloursOf(colouring) {
    if (colouring.kind === "classes") return Array.from(colouring.codes, (code) => colouring.entries[code][1]);
    const step = (colouring.palette.length - 1) / (colouring.high - colouring.low || 1);
    return Array.from(colouring.values, (value) =>
      Number.isNaN(value) ? data.rest : colouring.palette[Math.round((value - colouring.low) * step)]);
  }

  let drawnFaint = false;

  function draw() {
    drawnFaint = isFaint();
    const block = data.blocks[byId("block").selectedIndex];
    const colouring = data.colourings[byId("colour").selectedIndex];
    const colour = isFaint() ? Array(block.x.length).fill(FAINT) : coloursOf(colouring);
    source.data = { x: block.x, y: block.y, colour };
    byId("projection").textContent = block.projection;
    showLegend(colouring);
  }

  function showLegend(colouring) {
    const legend = byId("legend");
    legend.replaceChildren(element("div", "quiet", colouring.name));
    if (colouring.kind === "numbers") {
      const bar = element("div", "bar", "");
      bar.style.background = `linear-gradient(to right, ${colouring.palette.join(",")})`;
      const ends = element("div", "ends", "");
      ends.append(...[colouring.low, colouring.high].map((end) => element("span", "", String(Number(end.toPrecision(4))))));
      legend.append(bar, ends);
      return;
    }
    colouring.entries.forEach(([name, colour, rows], code) => {
      const entry = element("button", "", "");
      entry.type = "button";
      entry.title = "select these";
      const swatch = element("span", "swatch", "");
      swatch.style.background = colour;
      entry.append(swatch, element("span", "name", name), element("span", "rows", rows.toLocaleString("en")));
      entry.addEventListener("click", () => select((i) => colouring.codes[i] === code));
      legend.append(entry);
    });
  }

  // what is selected: by the search, the legend, or a region

  function select(isWanted) {
    const wanted = [];
    for (let i = 0; i < data.names.length; i++) if (isWanted(i)) wanted.push(i);
    source.selected.indices = wanted;
    showCount();
  }

  function search() {
    const wanted = byId("search").value.trim().toLowerCase();
    unmatched = wanted !== "" && !texts.some((text) => text.includes(wanted));
    select(wanted === "" ? () => false : (i) => texts[i].includes(wanted));
  }

  function isFaint() {
    return unmatched && source.selected.indices.length === 0;
  }

  function showCount() {
    if (isFaint() !== drawnFaint) draw();
    const count = source.selected.indices.length;
    const searched = byId("search").value.trim() !== "";
    const all = data.names.length;
    byId("count").textContent = isFaint() ? "no match" : count || searched
      ? `${count.toLocaleString("en")} selected` : `${all.toLocaleString("en")} point${all === 1 ? "" : "s"}`;
    byId("download").disabled = count === 0;
    byId("clear").disabled = count === 0 && !searched;
    const wanted = count <= LARGE_SELECTION ? size + 4 : size;
    if (renderer.selection_glyph.size.value !== wanted) renderer.selection_glyph.size = { value: wanted };
  }

  function download() {
    const lines = [...source.selected.indices].sort((a, b) => a - b)
      .map((i) => data.names[i].replace(/\r/g, "\\r").replace(/\n/g, "\\n") + "\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "text/plain" }));
    link.download = "selected.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  // what is under the pointer

  const sheets = new Map();
  const tip = byId("tip");
  const canvas = tip.querySelector("canvas");
  let pointer = { clientX: 0, clientY: 0 };
  let shown = -1;

  function sheetOf(number) {
    if (!sheets.has(number)) {
      const image = new Image();
      image.src = data.thumbnails.uris[number];
      sheets.set(number, image.decode().then(() => image));
    }
    return sheets.get(number);
  }

  async function showThumbnail(i) {
    canvas.hidden = true;
    if (squares[i] < 0) return;
    const { across, edge } = data.thumbnails;
    const [width, height] = [sizes[2 * i], sizes[2 * i + 1]];
    const place = squares[i] % (across * across);
    const image = await sheetOf(Math.floor(squares[i] / (across * across)));
    if (shown !== i) return;
    const scale = THUMBNAIL / Math.max(width, height);
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    const context = canvas.getContext("2d");
    context.drawImage(image, (place % across) * edge, Math.floor(place / across) * edge, width, height,
      0, 0, canvas.width, canvas.height);
    canvas.hidden = false;
    placeTip();
  }

  function placeTip() {
    const { offsetWidth: width, offsetHeight: height } = tip;
    const right = pointer.clientX + 16 + width > innerWidth ? pointer.clientX - 16 - width : pointer.clientX + 16;
    tip.style.left = `${Math.max(4, right)}px`;
    tip.style.top = `${Math.max(4, Math.min(pointer.clientY + 12, innerHeight - height - 4))}px`;
  }

  function showTip(indices) {
    if (indices.length === 0) {
      shown = -1;
      tip.hidden = true;
      return;
    }
    const i = indices[indices.length - 1]; // drawn last, so on top
    if (i !== shown) {
      shown = i;
      const lines = [element("div", "", data.names[i])];
      for (const fact of data.facts) {
        if (fact.codes[i] >= 0) lines.push(element("div", "quiet", `${fact.name}: ${textOf(fact, i)}`));
      }
      if (indices.length > 1) lines.push(element("div", "quiet", `and ${indices.length - 1} more here`));
      byId("tip-text").replaceChildren(...lines);
      showThumbnail(i);
    }
    tip.hidden = false;
    placeTip();
  }

  // the rest

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const showInk = () => { renderer.selection_glyph.line_color = { value: dark.matches ? "#ffffff" : "#000000" }; };
  const optionsOf = (some) => some.map(({ name }) => element("option", "", name));

  byId("block").append(...optionsOf(data.blocks));
  byId("colour").append(...optionsOf(data.colourings));
  byId("block").selectedIndex = data.blocks.length - 1;
  byId("block").addEventListener("change", () => { draw(); view.reset_range(); });
  byId("colour").addEventListener("change", draw);
  byId("search").addEventListener("input", search);
  byId("download").addEventListener("click", download);
  byId("clear").addEventListener("click", () => { byId("search").value = ""; search(); });
  dark.addEventListener("change", showInk);
  document.addEventListener("pointermove", (event) => { pointer = event; }, true);
  byId("plot").addEventListener("pointerleave", () => showTip([]));
  source.selected.change.connect(showCount);
  source.inspect.connect(() => showTip([...source.inspected.indices]));
  showInk();
  draw();
  view.reset_range();
  showCount();
  document.body.dataset.ready = "yes";
})();
