"use strict";
(function () {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const { probabilities, labels, ids, thumbnails, chosen, grid } = data;  // sorted by probability
  const SHOWN = 60;
  const n = probabilities.length;
  const tumourBelow = new Array(n + 1).fill(0);
  for (let i = 0; i < n; i++) tumourBelow[i + 1] = tumourBelow[i] + labels[i];
  const nTumour = tumourBelow[n], nNormal = n - nTumour;
  const byId = (id) => document.getElementById(id);
  const slider = byId("slider"), exact = byId("exact");

  // patches below the threshold; those at it are called tumour
  function below(threshold) {
    let low = 0, high = n;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (probabilities[middle] < threshold) low = middle + 1; else high = middle;
    }
    return low;
  }

  function counts(threshold) {
    const k = below(threshold), fn = tumourBelow[k], tn = k - fn;
    return { k, fn, tn, tp: nTumour - fn, fp: nNormal - tn };
  }

  function rates(c) {
    const share = (part, rest) => (part + rest > 0 ? part / (part + rest) : NaN);
    return {
      sensitivity: share(c.tp, c.fn), specificity: share(c.tn, c.fp), ppv: share(c.tp, c.fp),
      npv: share(c.tn, c.fn), f1: share(2 * c.tp, c.fp + c.fn),
    };
  }

  const number = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "undefined");

  function interval(name, threshold) {
    const bounds = threshold === chosen.threshold
      ? chosen[name] : grid[name] && grid[name][Math.round(threshold * (grid[name].length - 1))];
    return bounds && bounds[0] !== null ? bounds[0].toFixed(3) + " to " + bounds[1].toFixed(3) : "none";
  }

  // what the picture shows at the chosen threshold is shifted from there, dx and dy in its units
  function move(chart, part, dx, dy) {
    const moved = byId(chart + "-" + part);
    if (!moved) return;
    const known = Number.isFinite(dx) && Number.isFinite(dy), unit = byId(chart).dataset;
    moved.style.display = known ? "" : "none";
    if (known) moved.setAttribute("transform", `translate(${dx * unit.width} ${-dy * unit.height})`);
  }

  function update(threshold) {
    const c = counts(threshold), r = rates(c);
    for (const name of ["tp", "fn", "fp", "tn"]) byId(name).textContent = c[name];
    for (const name of Object.keys(r)) {
      if (!byId(name)) continue;
      byId(name).textContent = number(r[name], 4);
      byId(name + "-ci").textContent = interval(name, threshold);
    }
    move("roc", "marker", at.specificity - r.specificity, r.sensitivity - at.sensitivity);
    move("precision_recall", "marker", r.sensitivity - at.sensitivity, r.ppv - at.ppv);
    move("histogram", "threshold", threshold - chosen.threshold, 0);
    showChanged(threshold, c);
  }

  function showChanged(threshold, c) {
    const was = counts(chosen.threshold);
    const from = Math.min(was.k, c.k), to = Math.max(was.k, c.k);
    const raised = c.k > was.k, tumour = Math.abs(c.fn - was.fn), normal = Math.abs(c.tn - was.tn);
    byId("change").textContent = from === to ? "This is the chosen threshold, or next to it: no patch changes sides."
      : (to - from) + " patches change sides: " + (raised
        ? tumour + " more tumour patches missed, " + normal + " fewer false alarms."
        : tumour + " more tumour patches found, " + normal + " more false alarms.")
        + (to - from > SHOWN ? " The " + SHOWN + " nearest to the chosen threshold:" : "");
    const list = byId("changed");
    list.replaceChildren();
    const indices = [];
    for (let i = from; i < to; i++) indices.push(i);
    if (!raised) indices.reverse();
    for (const i of indices.slice(0, SHOWN)) list.append(item(i, raised !== Boolean(labels[i])));
  }

  function item(i, better) {
    const entry = document.createElement("li");
    const picture = thumbnails[i];
    if (picture) {
      const image = document.createElement("img");
      image.src = picture;
      image.alt = "patch " + ids[i];
      entry.append(image);
    }
    const text = document.createElement("span");
    text.className = better ? "better" : "worse";
    text.textContent = (better ? "▲ " : "▼ ") + (labels[i] ? "tumour" : "normal");
    entry.append(text, document.createElement("br"), probabilities[i].toFixed(3) + " " + ids[i]);
    return entry;
  }

  const at = rates(counts(chosen.threshold));
  let current = chosen.threshold;
  function set(value) {
    const threshold = Math.min(1, Math.max(0, value));
    if (!Number.isFinite(threshold)) return;
    current = threshold;
    slider.value = threshold;
    exact.value = threshold;
    update(threshold);
  }

  slider.addEventListener("input", () => set(Number(slider.value)));
  // an emptied field, or no number, is no threshold: Number("") would be 0
  exact.addEventListener("change", () => set(exact.value === "" ? current : Number(exact.value)));
  byId("reset").addEventListener("click", () => set(chosen.threshold));
  const fromHash = () => {
    const found = /threshold=([0-9.eE+-]+)/.exec(location.hash);
    if (found) set(Number(found[1]));
    return Boolean(found);
  };
  addEventListener("hashchange", fromHash);
  if (!fromHash()) set(chosen.threshold);
})();
