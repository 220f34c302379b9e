// The user's actions: choose, drop, paste, move, switch, point.

function start() {
  $("model-name").textContent = MODEL.name;
  $("model-facts").textContent = `${MODEL.task_title}, ${counted(MODEL.classes.length, "class", "classes")}`;
  document.title = `${MODEL.name} – try the model`;
  if (MODEL.default_threshold !== null) $("threshold").min = MODEL.lowest_threshold;
  if (MODEL.multilabel) $("threshold-label").textContent = "Label threshold";
  listKnown($("known"), MODEL.classes);
  for (const method of MODEL.methods) $("method").append(element("option", { textContent: method }));
  $("method").hidden = $("method-label").hidden = !MODEL.methods.length;
  listenForImages();
  listenToFilters();
  listenToObjects();
  listenToRequests();
  new ResizeObserver(fit).observe($("stage"));
  window.addEventListener("resize", fit);
}

function listenForImages() {
  const choose = () => $("file").click();
  $("drop").addEventListener("click", choose);
  $("another").addEventListener("click", choose);
  $("file").addEventListener("change", () => {
    const files = [...$("file").files];
    // So that the same file can be chosen again after a change.
    $("file").value = "";
    if (files.length) openFiles(files);
  });
  const dragging = (on) => document.body.classList.toggle("dragging", on);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    dragging(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) dragging(false);
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dragging(false);
    openFiles(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input")) return;
    const [file] = event.clipboardData.files;
    if (!file) return;
    event.preventDefault();
    // A pasted image is not a file that a shell command could read.
    file.pasted = true;
    open(file);
  });
}

function listenToFilters() {
  const moved = () => {
    // The maps stay, but the request shown is again the one for what is drawn.
    if (FINDS_OBJECTS) state.explanation = null;
    update();
  };
  $("threshold").addEventListener("input", () => {
    state.threshold = Number($("threshold").value);
    moved();
  });
  $("threshold-reset").addEventListener("click", () => {
    state.threshold = MODEL.default_threshold;
    moved();
    $("threshold").focus();
  });
  $("classes").addEventListener("change", (event) => {
    if (event.target.checked) state.hidden.delete(event.target.value);
    else state.hidden.add(event.target.value);
    update();
  });
  const switchAll = (on) => {
    for (const box of $("classes").querySelectorAll("input")) {
      box.checked = on;
      if (on) state.hidden.delete(box.value);
      else state.hidden.add(box.value);
    }
    update();
  };
  $("all-classes").addEventListener("click", () => switchAll(true));
  $("no-classes").addEventListener("click", () => switchAll(false));
  $("class-filter").addEventListener("input", update);
  $("all-probabilities").addEventListener("click", () => {
    state.allClasses = !state.allClasses;
    update();
  });
}

function listenToObjects() {
  const list = $("objects");
  const pin = (object) => {
    state.pinned = object;
    state.hovered = null;
    draw();
    if (object) list.children[state.answer.boxes.indexOf(object)].scrollIntoView({ block: "nearest" });
  };
  const objectOf = (event) => {
    const row = event.target.closest("li");
    return row ? state.answer.boxes[[...list.children].indexOf(row)] : null;
  };
  const hover = (object) => {
    if (state.hovered === object) return;
    state.hovered = object;
    draw();
  };
  const toggle = (object) => pin(object === state.pinned ? null : object);
  list.addEventListener("click", (event) => toggle(objectOf(event)));
  list.addEventListener("pointermove", (event) => hover(objectOf(event)));
  list.addEventListener("pointerleave", () => hover(null));
  list.addEventListener("keydown", (event) => {
    const visible = visibleObjects();
    const at = visible.indexOf(state.pinned);
    const steps = { ArrowDown: at + 1, ArrowUp: at < 0 ? visible.length - 1 : at - 1, Home: 0, End: visible.length - 1 };
    if (event.key === "Escape") pin(null);
    else if (event.key in steps) pin(visible[Math.max(0, Math.min(visible.length - 1, steps[event.key]))] ?? null);
    else return;
    event.preventDefault();
  });
  const canvas = $("overlay");
  const under = (event) =>
    objectAt(visibleObjects(), event.offsetX, event.offsetY, canvas.clientWidth, canvas.clientHeight);
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") hover(under(event));
  });
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("click", (event) => toggle(under(event)));
}

function listenToRequests() {
  $("explain").addEventListener("click", () => {
    const parameters = { visualizations: true, attributions: false };
    if (MODEL.methods.length) parameters.xai_algorithm = $("method").value;
    if (MODEL.multilabel) parameters.confidence_score_threshold_multilabel = state.threshold;
    ask(parameters);
  });
  $("cancel").addEventListener("click", () => {
    stop();
    $("explain-status").textContent = "Cancelled.";
  });
  const copy = async (text) => {
    try {
      await copyText(text);
      $("copied").textContent = "Copied.";
    } catch {
      $("copied").textContent = "This browser does not allow copying; select the text.";
    }
  };
  $("copy").addEventListener("click", () => copy($("curl").textContent));
  $("copy-json").addEventListener("click", () => copy(JSON.stringify([shownAnswer()])));
  $("answer-section").addEventListener("toggle", () => {
    if (state.answer) showRequest();
  });
}

start();
