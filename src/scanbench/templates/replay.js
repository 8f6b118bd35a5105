"use strict";
// Plays a scan line by line. Everything shown stands in the page, as JSON; nothing is asked for.
// Text from data enters the page as text only (textContent, attributes of SVG), never as markup.
(() => {
  const $ = (id) => document.getElementById(id);
  const { colours, scans } = JSON.parse($("data").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const ICONS = { "go on": "●", stop: "■", recondition: "↻" };
  const ADVICE_COLOURS = { "go on": "#9fd4c3", stop: "#d55e00", recondition: "#e69f00" };
  // The chart, in pixels: margins, and top and height of each panel.
  const LEFT = 30, RIGHT = 18;
  const PANELS = { p: [20, 170], scores: [214, 80], steps: [318, 56], strip: [398, 16] };
  const HEIGHT = 462;
  const LARGEST_STEP = 8; // standard deviations: scores end there

  let scan = scans[0];
  let line = 0; // lines measured so far
  let playing = false;

  // ------------------------------------------------------------------------- what is known when

  // The newest answer after n lines, or null before the first.
  const answerAt = (n) => scan.answers.findLast((answer) => answer.line <= n) ?? null;
  const adviceAt = (n) => answerAt(n)?.advice ?? "go on";
  const number = (value) => value.toFixed(3).replace("-", "−");
  const percent = (share) => `${100 * share}%`;
  // The first line of the present advice, where it is more than to go on.
  const advisedSince = () => {
    const given = scan.answers.filter((answer) => answer.line <= line);
    const before = given.findLastIndex((answer) => answer.advice !== adviceAt(line));
    return given[before + 1].line;
  };

  // ----------------------------------------------------------------------------------- elements

  const fill = (node, tag, attributes = {}, text = "") => {
    const svg = node.namespaceURI.endsWith("svg");
    const child = svg ? document.createElementNS(node.namespaceURI, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) child.setAttribute(name, value);
    child.textContent = text;
    node.append(child);
    return child;
  };

  const attends = () => scan.answers.some((answer) => answer.attention);

  // What belongs to a scan and not to a line of it.
  function open(index) {
    pause();
    scan = scans[index];
    $("scan").value = index;
    $("previous").disabled = index === 0;
    $("next").disabled = index === scans.length - 1;
    $("line").max = scan.measured;
    $("image").src = scan.image;
    $("image").alt = `Scan ${scan.name}`;
    $("frame").style.aspectRatio = String(1 / Math.min(4, Math.max(0.25, scan.aspect)));
    $("about").replaceChildren();
    for (const [term, text] of [["Name", scan.name], ...scan.about]) {
      fill($("about"), "dt", {}, term);
      fill($("about"), "dd", {}, text);
    }
    const rows = $("answer").tBodies[0];
    rows.replaceChildren();
    scan.classes.forEach((name, c) => {
      const row = fill(rows, "tr");
      const head = fill(row, "th", { scope: "row" });
      fill(head, "span", { class: "swatch" }).style.background = colour(c);
      head.append(name);
      fill(row, "td", { class: "n" });
      fill(fill(row, "td", { class: "meter" }), "i").style.background = colour(c);
    });
    $("attention").toggleAttribute("hidden", !attends());
    draw();
    show(scan.measured);
  }

  const colour = (c) => colours[c % colours.length];

  // -------------------------------------------------------------------------------------- chart

  let x = (n) => n; // line → pixel of the chart

  function draw() {
    const chart = $("chart");
    const width = Math.max(240, chart.clientWidth);
    x = (n) => LEFT + (n / scan.planned) * (width - LEFT - RIGHT);
    chart.replaceChildren();
    chart.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    chart.style.height = `${HEIGHT}px`;
    const clip = fill(fill(chart, "clipPath", { id: "past" }), "rect", { x: 0, y: 0, height: HEIGHT });
    clip.id = "clip";
    const past = fill(chart, "g", { "clip-path": "url(#past)" });
    const ends = scan.answers.map((_, i) => scan.answers[i + 1]?.line ?? scan.measured);
    drawProbabilities(past, ends);
    drawScores(past, ends);
    drawSteps(past);
    drawStrip(past, ends);
    drawAxes(chart, width);
    const marks = Object.values(PANELS).map(([top, height]) => `M0 ${top}v${height}`);
    fill(chart, "path", { id: "cursor", d: marks.join(""), stroke: "var(--edge)", "stroke-width": 2 });
  }

  // Where an answer begins. A model's only answer, with the last line, is shown as a strip at the end.
  const start = (answer, end) =>
    scan.answers.length === 1 && answer.line === end ? x(end) - 4 : x(answer.line);

  // Probabilities of all classes, stacked: each stands from its answer to the next one.
  function drawProbabilities(past, ends) {
    const [top, height] = PANELS.p;
    const first = scan.answers[0]?.line ?? scan.measured;
    fill(past, "rect", { x: x(0), y: top, width: x(first) - x(0), height, fill: "var(--empty)" });
    scan.answers.forEach((answer, i) => {
      let below = 0;
      const from = start(answer, ends[i]);
      answer.p.forEach((p, c) => {
        fill(past, "rect", {
          x: from, y: top + height * (1 - below - p), width: x(ends[i]) - from, height: height * p, fill: colour(c),
        });
        below += p;
      });
    });
  }

  function drawScores(past, ends) {
    const [top, height] = PANELS.scores;
    for (const [key, dash] of [["uncertainty", ""], ["change", "4 3"]]) {
      const steps = scan.answers.map((answer, i) => {
        const y = top + height * (1 - answer[key]);
        return `${i ? "L" : "M"}${x(answer.line)} ${y}H${x(ends[i])}`;
      });
      fill(past, "path", { d: steps.join(""), fill: "none", stroke: "var(--ink)", "stroke-width": 1.6, "stroke-dasharray": dash });
    }
  }

  // A needle for each line, up or down from the middle.
  function drawSteps(past) {
    const [top, height] = PANELS.steps;
    const middle = top + height / 2;
    const needles = scan.steps.map((z, i) => (z === null ? "" : `M${x(i + 0.5)} ${middle}V${middle - (z / LARGEST_STEP) * (height / 2)}`));
    fill(past, "path", { d: needles.join(""), "data-of": "steps", stroke: "var(--ink)", "stroke-width": 1.2 });
  }

  // Advice as a strip, and a mark above it at each line with a fault.
  function drawStrip(past, ends) {
    const [top, height] = PANELS.strip;
    const first = scan.answers[0]?.line ?? scan.measured;
    fill(past, "rect", { x: x(0), y: top, width: x(first) - x(0), height, fill: ADVICE_COLOURS["go on"] });
    scan.answers.forEach((answer, i) => {
      const lower = answer.advice === "go on" ? 0 : 4; // told by height too, for grey print
      const from = start(answer, ends[i]);
      fill(past, "rect", { x: from, y: top - lower, width: x(ends[i]) - from, height: height + lower, fill: ADVICE_COLOURS[answer.advice] });
    });
    for (const [n, kind] of scan.faulty) {
      const mark = fill(past, "path", { d: `M${x(n - 0.5)} ${top + height + 2}l-4 8h8z`, fill: "var(--edge)" });
      fill(mark, "title", {}, `line ${n}: ${kind}`);
    }
  }

  function drawAxes(chart, width) {
    for (const [name, title] of [
      ["p", "Probability of each class"],
      ["scores", "Uncertainty (solid), change score (dashed)"],
      ["steps", "Step from line to line, in standard deviations"],
      ["strip", scan.faulty.length ? "Advice, and lines with faults (▲)" : "Advice"],
    ]) {
      const [top, height] = PANELS[name];
      fill(chart, "text", { class: "title", x: LEFT, y: top - 8 }, title);
      fill(chart, "rect", { x: x(0), y: top, width: x(scan.planned) - x(0), height, fill: "none", stroke: "var(--line)" });
      if (name === "strip") continue;
      const [low, high] = name === "steps" ? [-LARGEST_STEP, LARGEST_STEP] : [0, 1];
      for (const share of [0, 0.5, 1])
        fill(chart, "text", { x: LEFT - 5, y: top + height * (1 - share) + 4, "text-anchor": "end" }, String(low + share * (high - low)).replace("-", "−"));
    }
    if (scan.changeLine !== null) {
      const at = x(scan.changeLine);
      fill(chart, "line", { x1: at, x2: at, y1: PANELS.p[0], y2: PANELS.strip[0], stroke: "var(--ink)", "stroke-dasharray": "6 3" });
    }
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 20000].find((s) => scan.planned / s <= width / 60);
    for (let n = 0; n <= scan.planned; n += step)
      fill(chart, "text", { x: x(n), y: HEIGHT - 20, "text-anchor": "middle" }, n);
    fill(chart, "text", { x: x(scan.planned / 2), y: HEIGHT - 4, "text-anchor": "middle" }, "Scan line");
  }

  // --------------------------------------------------------------------------------------- line

  function show(n) {
    line = Math.max(0, Math.min(scan.measured, n));
    const answer = answerAt(line);
    const hidden = percent(1 - line / scan.planned);
    $("image").style.clipPath = scan.upward ? `inset(${hidden} 0 0 0)` : `inset(0 0 ${hidden} 0)`;
    $("edge").style.top = scan.upward ? hidden : percent(line / scan.planned);
    $("edge").hidden = line === scan.planned;
    $("clip").setAttribute("width", x(line));
    $("cursor").setAttribute("transform", `translate(${x(line)})`);
    showAdvice(answer);
    showAnswer(answer);
    showAttention(answer);
    showFaults();
    $("line").value = line;
    $("count").value = `line ${line} of ${scan.planned}`;
    $("caption").textContent = `${line} of ${scan.planned} lines, measured ${scan.upward ? "upwards" : "downwards"}`
      + (attends() ? "; bars: attention of the newest answer to each line" : "")
      + (scan.measured < scan.planned ? `; aborted after ${scan.measured}` : "")
      + (scan.changeLine !== null ? `; the tip changed at line ${scan.changeLine}` : "");
    const said = answer ? scan.classes.map((name, c) => `${name} ${number(answer.p[c])}`).join(", ") : "no answer yet";
    $("line").setAttribute("aria-valuetext", `line ${line} of ${scan.planned}: ${adviceAt(line)}; ${said}`);
    $("chart").setAttribute("aria-label", `Course of the answers until line ${line}: ${said}`);
  }

  function showAdvice(answer) {
    const advice = adviceAt(line);
    const why = !answer ? "no answer yet" : advice === "go on" ? "" : `since line ${advisedSince()}`;
    const text = `${ICONS[advice]} ${advice.toUpperCase()} ${why}`;
    if ($("advice").textContent === text) return; // said aloud once, and not at every line
    $("advice").dataset.advice = advice;
    $("advice").replaceChildren();
    fill($("advice"), "b", {}, `${ICONS[advice]} ${advice.toUpperCase()}`);
    $("advice").append(` ${why}`);
  }

  function showAnswer(answer) {
    [...$("answer").tBodies[0].rows].forEach((row, c) => showValue(row, answer?.p[c]));
    for (const key of ["uncertainty", "change"]) showValue($(key).parentElement, answer?.[key]);
    const step = scan.steps[line - 1] ?? undefined;
    showValue($("step").parentElement, step, Math.max(0, step ?? 0) / LARGEST_STEP);
  }

  function showValue(row, value, share = value ?? 0) {
    row.querySelector(".n").textContent = value === undefined ? "–" : number(value);
    row.querySelector("i").style.width = percent(share);
  }

  // Weight of each line for the newest answer, as bars beside the scan's lines.
  function showAttention(answer) {
    const weights = answer?.attention ?? [];
    const most = Math.max(...weights, Number.MIN_VALUE);
    const bars = weights.map((weight, i) => {
      const y = scan.upward ? scan.runLines - 1 - i : i;
      return `M0 ${y}h${weight / most}v1H0z`;
    });
    const attention = $("attention");
    attention.setAttribute("viewBox", `0 0 1 ${scan.runLines}`);
    attention.setAttribute("aria-label", `Attention over ${weights.length} lines`);
    attention.replaceChildren();
    fill(attention, "path", { d: bars.join(""), fill: "var(--accent)" });
  }

  function showFaults() {
    const list = $("faults");
    const messages = scan.faults.filter((fault) => fault.line <= line).map((fault) => fault.message);
    if (list.childElementCount === Math.max(1, messages.length) && list.lastChild.textContent === (messages.at(-1) ?? "none")) return;
    list.replaceChildren();
    for (const message of messages.length ? messages : ["none"]) fill(list, "li", {}, message);
  }

  // ------------------------------------------------------------------------------------ playing

  function play() {
    if (line === scan.measured) show(0);
    playing = true;
    $("play").textContent = "Pause";
    let before = performance.now();
    let gone = 0;
    const frame = (now) => {
      if (!playing) return;
      gone += ((now - before) / 1000) * Number($("speed").value);
      before = now;
      // Where motion is unwelcome, the picture changes once a second.
      const least = still.matches ? Number($("speed").value) : 1;
      if (gone >= least) {
        show(line + Math.floor(gone));
        gone -= Math.floor(gone);
      }
      if (line === scan.measured) pause();
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  function pause() {
    playing = false;
    $("play").textContent = "Play";
  }

  function seek(n) {
    pause();
    show(n);
  }

  function key(event) {
    const target = event.target;
    // A select keeps its own keys, a button its space bar; the slider's are the page's.
    if (event.altKey || event.ctrlKey || event.metaKey || target.matches("select, summary, a")) return;
    if (event.key === " " && target.matches("button")) return;
    const step = event.shiftKey ? 10 : 1;
    const act = {
      " ": () => (playing ? pause() : play()),
      ArrowLeft: () => seek(line - step),
      ArrowRight: () => seek(line + step),
      Home: () => seek(0),
      End: () => seek(scan.measured),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  scans.forEach((one, i) => fill($("scan"), "option", { value: i }, `${i + 1}. ${one.summary} · ${one.name}`));
  $("player").hidden = false;
  $("play").addEventListener("click", () => (playing ? pause() : play()));
  $("line").addEventListener("input", () => seek(Number($("line").value)));
  $("scan").addEventListener("change", () => open(Number($("scan").value)));
  $("previous").addEventListener("click", () => open(scans.indexOf(scan) - 1));
  $("next").addEventListener("click", () => open(scans.indexOf(scan) + 1));
  $("chart").addEventListener("click", (event) => {
    const at = (event.offsetX - LEFT) / (x(scan.planned) - LEFT);
    seek(Math.round(at * scan.planned));
  });
  document.addEventListener("keydown", key);
  new ResizeObserver(() => { draw(); show(line); }).observe($("chart").parentElement);
  // replay.html#3-40 opens the third scan at line 40.
  const [, wanted, at] = location.hash.match(/^#(\d+)(?:-(\d+))?$/) ?? [];
  open(Math.min(Math.max(1, Number(wanted ?? 1)), scans.length) - 1);
  if (at !== undefined) show(Number(at));
})();
