// The page's logic: takes an image, sends it to the service, shows and filters the answer.

const MODEL = JSON.parse(document.getElementById("model").textContent);
const CLASS_INDEX = new Map(MODEL.classes.map((label, index) => [label, index]));
const FINDS_OBJECTS = MODEL.finds_objects;
const SHOWN_CLASSES = 5;
const MANY_CLASSES = 12;
const PATIENCE = 3; // retries while the service is busy
const $ = (id) => document.getElementById(id);

const state = {
  file: null,
  base64: null, // the file's content, once read
  answer: null, // the service's answer at the lowest threshold
  explanation: null, // {parameters, request, answer} of the maps on the page
  threshold: MODEL.default_threshold,
  hidden: new Set(), // labels switched off by the user
  pinned: null, // highlighted objects: selected, and under the pointer
  hovered: null,
  allClasses: false,
  key: "",
  controller: null, // aborts the current request
};

// --- taking an image ---------------------------------------------------------------------------------

function openFiles(files) {
  if (files.length) {
    open(files[0]);
    return;
  }
  showFailure(new Failure("No file found", "Drop an image file, or save the image to a file first."));
}

async function open(file) {
  stop();
  Object.assign(state, { file, base64: null, answer: null, explanation: null, pinned: null, hovered: null });
  state.hidden.clear();
  state.threshold = MODEL.default_threshold;
  const hadFocus = [$("drop"), document.body].includes(document.activeElement);
  hideAnswer();
  const shown = await showPicture(file);
  if (state.file !== file) return;
  $("drop").hidden = shown;
  $("toolbar").hidden = false;
  if (hadFocus) $("another").focus({ preventScroll: true });
  const answered = await ask();
  if (state.file !== file || !answered || shown) return;
  $("drop").hidden = true;
  fileFacts("this browser cannot show this file type, but the service can score it");
}

/** Show a file's image, upright by its EXIF; false if this browser does not know its format. */
async function showPicture(file) {
  const image = $("image");
  if (image.src) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = file.name;
  $("picture").hidden = true;
  fileFacts();
  try {
    await image.decode();
  } catch {
    return false;
  }
  if (state.file !== file) return false;
  $("picture").hidden = false;
  fileFacts();
  fit();
  return true;
}

function fileFacts(note = "") {
  const image = $("image");
  const size = $("picture").hidden ? "" : `${image.naturalWidth} × ${image.naturalHeight}`;
  $("file-facts").replaceChildren(nameOf(state.file.name), ` ${[size, note].filter(Boolean).map((part) => `· ${part}`).join(" ")}`);
}

/** Size the image to the window; small images are enlarged so that labels stay readable. */
function fit() {
  const { naturalWidth: width, naturalHeight: height } = $("image");
  if ($("picture").hidden || !width) return;
  const style = getComputedStyle($("picture"));
  const room = $("picture").clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const high = Math.max(240, window.innerHeight * 0.78 - 90);
  const scale = Math.min(room / width, high / height, Math.max(1, MODEL.style.smallest_side / Math.max(width, height)));
  $("image").style.width = `${width * scale}px`;
  $("image").style.height = `${height * scale}px`;
  draw();
}

// --- sending requests --------------------------------------------------------------------------------

function stop() {
  state.controller?.abort();
  state.controller = null;
}

/** Request the answer; with `explanation`, the documented xai_parameters, also its explanation. */
async function ask(explanation = null) {
  stop();
  const controller = new AbortController();
  state.controller = controller;
  hideFailure();
  const started = performance.now();
  const statusNode = explanation ? $("explain-status") : $("status");
  const doing = explanation ? "Explaining" : "Scoring";
  const tick = () => {
    const seconds = Math.floor((performance.now() - started) / 1000);
    statusNode.textContent = seconds ? `${doing}… ${seconds} s` : `${doing}…`;
  };
  tick();
  say(`${doing}.`);
  const timer = setInterval(tick, 1000);
  setBusy(true, explanation);
  // A plain request uses the lowest threshold, which serves every slider position; explaining costs time per object.
  const request = parametersAt(explanation ? state.threshold : MODEL.lowest_threshold);
  try {
    state.base64 ??= await readBase64(state.file);
    const answer = await askPatiently(request, explanation, controller.signal, timer, statusNode);
    if (controller.signal.aborted) return false;
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    if (explanation) state.explanation = { parameters: explanation, request, answer };
    else state.answer = answer;
    fileFacts(`answered in ${seconds} s`);
    statusNode.textContent = "";
    if (explanation) showExplanation();
    else showAnswer();
    return true;
  } catch (error) {
    if (error.name === "AbortError" || controller.signal.aborted) return false;
    statusNode.textContent = "";
    if (!explanation) {
      $("status").textContent = "No answer.";
      $("known-section").hidden = false;
    }
    showFailure(error, () => ask(explanation));
    return false;
  } finally {
    clearInterval(timer);
    // A newer request is still running.
    if (state.controller === controller || state.controller === null) {
      state.controller = null;
      setBusy(false, explanation);
    }
  }
}

/** Like `score`, but retry while the service is busy, at the time that it names. */
async function askPatiently(request, explanation, signal, timer, statusNode) {
  for (let left = PATIENCE; ; left--) {
    try {
      return await score(state.base64, request, explanation, state.key, signal);
    } catch (error) {
      if (!(error instanceof Failure) || error.retryAfter === null || left === 0) throw error;
      clearInterval(timer);
      for (let seconds = Math.min(60, Math.ceil(error.retryAfter)); seconds > 0; seconds--) {
        statusNode.textContent = `The service is busy. Retrying in ${seconds} s…`;
        await new Promise((resolve) => setTimeout(resolve, 1000));
        signal.throwIfAborted();
      }
      statusNode.textContent = "Retrying…";
    }
  }
}

function parametersAt(threshold) {
  return FINDS_OBJECTS ? { box_score_threshold: threshold } : null;
}

function setBusy(busy, explanation) {
  $("picture").classList.toggle("busy", busy && !explanation);
  $("panel").setAttribute("aria-busy", String(busy));
  $("explain").hidden = busy;
  $("cancel").hidden = !(busy && explanation);
  if (document.activeElement !== document.body) return;
  // The focused element may just have disappeared.
  if (explanation) $(busy ? "cancel" : "explain").focus({ preventScroll: true });
}

// --- showing the answer ------------------------------------------------------------------------------

function showAnswer() {
  $("status").classList.remove("waiting");
  if (FINDS_OBJECTS) {
    showClasses($("classes"), state.answer.boxes, state.hidden);
    listObjects($("objects"), state.answer.boxes);
    $("classes-section").hidden = $("classes").childElementCount < 2;
    $("objects-section").hidden = state.answer.boxes.length === 0;
  } else {
    $("probabilities-section").hidden = false;
  }
  $("threshold-section").hidden = MODEL.default_threshold === null;
  $("explain-section").hidden = false;
  $("request-section").hidden = $("answer-section").hidden = false;
  $("save").hidden = state.file.pasted !== true;
  if (!$("save").hidden) Object.assign($("save"), { href: $("image").src, download: state.file.name });
  update();
}

function hideAnswer() {
  for (const section of document.querySelectorAll("#panel > .card")) section.hidden = true;
  $("maps").hidden = true;
  $("status").classList.add("waiting");
  $("class-filter").value = "";
  hideFailure();
}

/** Update everything that depends on the threshold and on the classes shown. */
function update() {
  if (!state.answer) return;
  if (MODEL.default_threshold !== null) showThreshold();
  if (FINDS_OBJECTS) updateObjects();
  else updateProbabilities();
  showRequest();
}

function showThreshold() {
  $("threshold").value = state.threshold;
  $("threshold-value").textContent = shownThreshold();
  const own = Number(MODEL.default_threshold.toFixed(3));
  $("threshold-reset").textContent = `Reset to ${own}, the model's default`;
  $("threshold-reset").hidden = state.threshold === MODEL.default_threshold;
}

function shownThreshold() {
  return state.threshold.toFixed(Math.round(state.threshold * 1000) % 10 ? 3 : 2);
}

function aboveThreshold() {
  return state.answer.boxes.filter((object) => object.score >= state.threshold);
}

function visibleObjects() {
  return aboveThreshold().filter((object) => !state.hidden.has(object.label));
}

function updateObjects() {
  const above = aboveThreshold();
  const visible = visibleObjects();
  if (!visible.includes(state.pinned)) state.pinned = null;
  countClasses($("classes"), above);
  $("objects-title").textContent = counted(visible.length, "object");
  $("objects").hidden = visible.length === 0;
  const hidden = above.length - visible.length;
  const message = `${counted(above.length, "object")} at ${shownThreshold()} or above${hidden ? `, ${hidden} hidden` : ""}`;
  $("status").textContent = message;
  say(message);
  draw();
}

function draw() {
  const drawable = FINDS_OBJECTS && state.answer !== null;
  $("overlay").hidden = !drawable;
  if (!drawable) return;
  const visible = visibleObjects();
  const highlighted = state.hovered ?? state.pinned;
  showRows($("objects"), state.answer.boxes, visible, highlighted);
  // The service scores some formats that browsers cannot show.
  if ($("picture").hidden) return;
  const { clientWidth: width, clientHeight: height } = $("image");
  drawObjects($("overlay"), width, height, visible, highlighted);
  $("overlay").setAttribute("aria-label", `${counted(visible.length, "object")} outlined in ${state.file.name}`);
}

function updateProbabilities() {
  const { probs, labels } = state.answer;
  const ranked = labels.map((label, index) => ({ label, prob: probs[index] })).sort((a, b) => b.prob - a.prob);
  const wanted = $("class-filter").value.trim().toLocaleLowerCase();
  const matching = wanted ? ranked.filter(({ label }) => label.toLocaleLowerCase().includes(wanted)) : ranked;
  const listed = state.allClasses || wanted ? matching : matching.slice(0, SHOWN_CLASSES);
  showProbabilities($("probabilities"), listed, (prob) =>
    MODEL.multilabel ? prob >= state.threshold : prob === ranked[0].prob,
  );
  $("class-filter").hidden = labels.length <= MANY_CLASSES;
  $("all-probabilities").hidden = labels.length <= SHOWN_CLASSES || Boolean(wanted);
  $("all-probabilities").setAttribute("aria-expanded", String(state.allClasses));
  $("all-probabilities").textContent = state.allClasses
    ? `Show the top ${SHOWN_CLASSES}`
    : `Show all ${counted(labels.length, "class", "classes")}`;
  const above = ranked.filter(({ prob }) => prob >= state.threshold).length;
  const best = [nameOf(ranked[0].label), ` ${ranked[0].prob.toFixed(3)}`];
  const message = MODEL.multilabel ? [`${above} of ${counted(labels.length, "label")} at ${shownThreshold()} or above`] : best;
  $("status").replaceChildren(...message);
  say($("status").textContent);
}

function showExplanation() {
  const { answer } = state.explanation;
  const pictures = [answer.visualizations ?? []].flat();
  const titles = explainedLabels(answer);
  const captions = titles.map(({ label, score: value }) => {
    const score = element("span", { className: "count", textContent: ` ${value.toFixed(FINDS_OBJECTS ? 2 : 3)}` });
    return element("span", {}, swatchOf(label), " ", nameOf(label), score);
  });
  showMaps($("maps-list"), pictures, captions, (index) => `Evidence for ${titles[index]?.label ?? "the answer"}`);
  $("maps").hidden = pictures.length === 0;
  let message = "The service cannot explain this model.";
  if (pictures.length) message = `${counted(pictures.length, "heat map")} of the evidence for the answer.`;
  else if (answer.visualizations) message = "Nothing is at or above the threshold, so there is nothing to explain.";
  $("explain-status").textContent = message;
  say(message);
  // Their height is only known once they are decoded.
  const decoded = [...$("maps-list").querySelectorAll("img")].map((image) => image.decode());
  Promise.allSettled(decoded).then(() => $("maps").scrollIntoView({ block: "nearest" }));
  showRequest();
}

/** The class or object that each image of an explanation is about, in order. */
function explainedLabels(answer) {
  if (FINDS_OBJECTS) return answer.boxes;
  const all = answer.labels.map((label, index) => ({ label, score: answer.probs[index] }));
  if (MODEL.multilabel) {
    const threshold = state.explanation.parameters.confidence_score_threshold_multilabel;
    return all.filter(({ score: value }) => value >= threshold);
  }
  return [all.reduce((best, each) => (each.score > best.score ? each : best))];
}

/** Show the request for what is on the page, and its answer; the explanation's if there is one. */
function showRequest() {
  const explained = state.explanation;
  const parameters = explained ? explained.request : parametersAt(state.threshold);
  const keyNeeded = MODEL.key_required || state.key !== "";
  $("curl").textContent = curlCommand(state.file.name, parameters, explained?.parameters, keyNeeded);
  $("copied").textContent = "";
  if ($("answer-section").open) $("json").textContent = readable([shownAnswer()]);
}

function shownAnswer() {
  if (state.explanation) return state.explanation.answer;
  return FINDS_OBJECTS ? { ...state.answer, boxes: aboveThreshold() } : state.answer;
}

// --- errors and screen readers ------------------------------------------------------------------------

function showFailure(failure, again = null) {
  const known = failure instanceof Failure;
  if (!known) console.error(failure);
  $("alert-title").textContent = known ? failure.title : "This page has an error";
  $("alert-detail").textContent = known ? failure.detail : String(failure);
  $("retry").hidden = !(known && failure.retry && again);
  $("retry").onclick = again;
  $("alert").hidden = false;
  const needsKey = known && (failure.status === 401 || failure.status === 403);
  $("key-form").hidden = !needsKey;
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    state.key = $("key").value.trim();
    again?.();
  };
  if (needsKey) $("key").focus();
}

function hideFailure() {
  $("alert").hidden = $("key-form").hidden = true;
}

let saying = 0;

/** Announce a text to screen readers once it has settled, not at each step of a slider. */
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => {
    $("live").textContent = text;
  }, 400);
}
