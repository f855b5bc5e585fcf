"use strict";
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const PAGE = 24;
  const find = (selector) => document.querySelector(selector);
  const SVG = "http://www.w3.org/2000/svg";
  const state = { verdict: "", task: "", type: "", words: "", shown: PAGE };

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const boxes = (view) => {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", "boxes");
    svg.setAttribute("viewBox", `0 0 ${view.size[0]} ${view.size[1]}`);
    svg.setAttribute("preserveAspectRatio", "none");
    for (const [className, path] of view.paths) {
      const node = document.createElementNS(SVG, "path");
      node.setAttribute("class", className);
      node.setAttribute("d", path);
      svg.append(node);
    }
    return svg;
  };

  const picture = (view, alt) => {
    const image = make("img");
    image.src = data.images[view.key];
    image.alt = alt;
    image.width = view.size[0];
    image.height = view.size[1];
    return image;
  };

  const enlarge = (view, caption) => {
    const dialog = find("dialog");
    const figure = make("figure");
    const frame = make("div");
    frame.style.position = "relative";
    frame.append(picture(view, caption));
    if (view.paths) frame.append(boxes(view));
    figure.append(frame, make("figcaption", "", caption));
    dialog.replaceChildren(figure);
    dialog.showModal();
  };

  const viewButton = (view, index) => {
    const caption = `View ${index + 1}, frame ${view.frame}`;
    const button = make("button", "view");
    button.type = "button";
    button.title = caption;
    button.append(picture(view, caption), make("span", "", String(index + 1)));
    if (view.paths) button.append(boxes(view));
    button.addEventListener("click", () => enlarge(view, caption));
    return button;
  };

  const plan = (example) => {
    const shell = make("div");
    shell.innerHTML = example.plan; // written by the report itself, labels escaped
    const image = shell.querySelector("image");
    if (image) image.setAttribute("href", data.images[image.dataset.key]);
    return shell;
  };

  const pictures = (example) => {
    const strip = make("div", "views");
    strip.append(...example.views.map(viewButton));
    if (!example.plan) return strip;
    const both = make("div", "with-plan");
    both.append(plan(example), strip);
    return both;
  };

  const card = (example) => {
    const node = make("article", example.plan ? "card wide" : "card");
    const text = make("div", "text");
    const meta = make("p", "meta");
    meta.append(make("b", example.verdict, example.label));
    for (const words of example.meta) meta.append(make("span", "", words));
    text.append(meta);
    if (example.situation) text.append(make("p", "situation", example.situation));
    text.append(make("p", "question", example.question));
    const list = make("dl");
    for (const [name, words, className] of example.lines) {
      list.append(make("dt", "", name), make("dd", className, words || "(nothing)"));
    }
    text.append(list);
    node.append(text);
    if (example.views.length) node.append(pictures(example));
    return node;
  };

  const matches = (example, verdict) =>
    (!verdict || example.verdict === verdict) &&
    (!state.task || example.task === state.task) &&
    (!state.type || example.type === state.type) &&
    (!state.words || state.words.split(/\s+/).every((word) => example.text.includes(word)));

  for (const example of data.examples) {
    const lines = example.lines.map((line) => line[1]);
    example.text = [example.question, example.situation, ...example.meta, ...lines].join(" ").toLowerCase();
  }

  const draw = () => {
    const chosen = data.examples.filter((example) => matches(example, state.verdict));
    find(".cards").replaceChildren(...chosen.slice(0, state.shown).map(card));
    find(".none").hidden = chosen.length > 0;
    find(".more").hidden = chosen.length <= state.shown;
    find(".filters output").textContent = `${chosen.length.toLocaleString("en")} of ${data.total.toLocaleString("en")}`;
    for (const button of document.querySelectorAll(".filters [data-verdict]")) {
      const verdict = button.dataset.verdict;
      button.setAttribute("aria-pressed", String(verdict === state.verdict));
      button.querySelector("span").textContent = data.examples.filter((each) => matches(each, verdict)).length;
    }
  };

  const narrow = (changes) => {
    Object.assign(state, { shown: PAGE }, changes);
    draw();
  };
  for (const button of document.querySelectorAll(".filters [data-verdict]")) {
    button.addEventListener("click", () => narrow({ verdict: button.dataset.verdict }));
  }
  for (const name of ["task", "type"]) {
    const select = find(`.filters select[name=${name}]`);
    if (select) select.addEventListener("change", () => narrow({ [name]: select.value }));
  }
  find(".filters input").addEventListener("input", (event) => narrow({ words: event.target.value.trim().toLowerCase() }));
  find(".more").addEventListener("click", () => {
    state.shown += PAGE;
    draw();
  });
  find("dialog").addEventListener("click", () => find("dialog").close());
  draw();
})();
