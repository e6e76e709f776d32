// The page: frames go over a WebSocket, the next one when the answer to the last one is drawn.
import { drawMaps, drawObjects, drawRaw, drawSquare, fit } from "./draw.js";

const $ = (id) => document.getElementById(id);
const STAGE_COLORS = ["#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#4a0c6b", "#8a84a0", "#b9b4c8", "#5f5a72"];
const CLASSIFIER_SCALES = "1.0"; // a camera's frame at six scales is not live

const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? sessionStorage.getItem("token");
if (token) {
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", location.pathname);
}

let models = [];
let socket = null;
let retry = 0; // attempts to connect in a row
let expected = []; // what the answers to come are of: "settings", "frame", or a lesson
let source = null; // {kind: "camera" | "picture", ...}
let paused = false;
let dirty = false; // the picture is to be sent, or once more
let grabbing = false;
let shown = null; // {frame, answer}
let chosenScale = -1; // -1: all
let sent = {}; // when, and the page's own time before it
let lessons = []; // {model, name, blob, socket}: what was taught, and to which connection
let pupil = null; // the name of which the next frame is a picture
let recent = []; // times of the last answers
let later = 0;
let readable = 0; // until when what the status says stays, whatever frames are answered

function status(text, kind = "ok") {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").dataset.kind = kind;
}

// The connection

async function start() {
  try {
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    const response = await fetch("v1/models", { headers });
    if (response.status === 401) return status("this server needs its token: open the address with #token=…", "error");
    if (!response.ok) throw new Error(response.statusText);
    const described = await response.json();
    models = described.models;
    showModels();
    showSamples(described.samples);
    connect();
  } catch {
    again();
  }
}

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/live`);
  socket.onopen = () => {
    expected = [];
    status(source ? "connected" : "ready");
    sendSettings();
  };
  socket.onmessage = (event) => receive(JSON.parse(event.data));
  socket.onclose = (event) => {
    socket = null;
    if (event.code === 4401) return status("this server needs its token: open the address with #token=…", "error");
    again(event.code >= 4400 ? event.reason : undefined);
  };
}

function again(reason = "the server does not answer") {
  const seconds = Math.min(8, 2 ** retry++);
  status(`${reason}; trying again in ${seconds} s`, "error");
  setTimeout(models.length ? connect : start, 1000 * seconds);
}

const isOpen = () => socket?.readyState === WebSocket.OPEN;

function sendSettings() {
  const settings = { task: task(), model: $("model").value };
  if (token) settings.token = token;
  for (const name of ["scales", "stride"]) if ($(name).value.trim()) settings[name] = $(name).value.trim();
  if (hasMaps() && $("maps").checked) {
    settings.maps = "true";
    if ($("label").value) settings.label = $("label").value;
  }
  if (!hasMaps() && $("raw").checked) settings.raw = "true";
  if (!isOpen()) return;
  send(settings);
  if (task() === "taught") for (const lesson of lessons) teach(lesson);
  dirty = true;
  next();
}

function send(settings) {
  expected.push("settings");
  socket.send(JSON.stringify(settings));
}

/** Send a lesson, unless this connection has had it: a new one has forgotten what the last one was taught. */
function teach(lesson) {
  if (lesson.model !== $("model").value || lesson.socket === socket || !isOpen()) return;
  lesson.socket = socket;
  send({ teach: lesson.name });
  expected.push(lesson);
  socket.send(lesson.blob);
}

const isAwaiting = () => expected.some((kind) => kind !== "settings");
const isLesson = (kind) => typeof kind === "object";

/** A picture that was not learned: given up, or sent once more later. */
function failed(lesson, seconds) {
  readable = performance.now() + 4000;
  lessons = lessons.filter((other) => other !== lesson);
  if (seconds) setTimeout(() => { lessons.push({ ...lesson, socket: null }); teach(lessons.at(-1)); }, 1000 * seconds);
  showTaught();
  sendSettings(); // which end the lesson at the server, so that the next frame is none
}

function forget(name) {
  lessons = lessons.filter((lesson) => lesson.name !== name || lesson.model !== $("model").value);
  if (isOpen()) send({ forget: name });
  showTaught();
  ($("taught").querySelector("button") ?? $("name")).focus();
  dirty = true;
  next();
}

function receive(answer) {
  const kind = expected.shift();
  retry = 0;
  if (answer.error) {
    status(answer.error, "error");
    if (isLesson(kind)) failed(kind, answer.retry_after);
    if (kind === "frame") {
      recent = [];
      if (answer.retry_after || (source?.kind === "camera" && answer.status !== 422)) {
        dirty = true;
        later = setTimeout(next, 1000 * (answer.retry_after ?? 1));
      }
    }
    return;
  }
  if (kind === "settings") return;
  if (isLesson(kind)) {
    status("learned", "ok");
    showTaught();
    dirty = true;
    return next();
  }
  const begin = performance.now();
  shown = { frame: sent.frame, answer };
  show();
  const now = performance.now();
  const own = sent.own + now - begin;
  showTimes(answer, own, now - sent.at);
  if (now > readable) status(source?.kind === "camera" ? "live" : "done");
  document.documentElement.dataset.frames = Number(document.documentElement.dataset.frames ?? 0) + 1;
  next();
}

/** Send the next frame, if one is due and no answer is awaited. */
async function next() {
  clearTimeout(later);
  const due = source && (pupil !== null || (!paused && (source.kind === "camera" || dirty)));
  if (!due || grabbing || !isOpen() || isAwaiting()) return;
  grabbing = true;
  try {
    const begin = performance.now();
    const grabbed = await source.grab();
    if (!grabbed || !isOpen()) return;
    if (pupil !== null) {
      const lesson = { model: $("model").value, name: pupil, blob: grabbed.blob, socket: null };
      pupil = null;
      lessons.push(lesson);
      teach(lesson);
      return;
    }
    dirty = false;
    sent = { frame: grabbed.frame, own: performance.now() - begin - (grabbed.waited ?? 0), at: performance.now() };
    expected.push("frame");
    socket.send(grabbed.blob);
  } finally {
    grabbing = false;
    if (source?.kind === "camera" && !isAwaiting() && isOpen()) later = setTimeout(next, 100);
  }
}

// Sources

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    return status("browsers give the camera to pages of https or of localhost only", "error");
  }
  const width = Number($("width").value);
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: Math.max(640, width) }, facingMode: "environment" } });
  } catch (error) {
    const reasons = {
      NotAllowedError: "the camera was refused: allow it in the browser's address bar, or drop a picture",
      NotFoundError: "there is no camera: drop a picture", NotReadableError: "another program uses the camera",
    };
    return status(reasons[error.name] ?? `the camera does not start: ${error.message}`, "error");
  }
  stopCamera();
  const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
  const canvas = document.createElement("canvas");
  stream.getVideoTracks()[0].onended = () => {
    stopCamera();
    status("the camera was disconnected; connect it and start it again", "error");
  };
  await video.play();
  const grab = async () => {
    if (!video.videoWidth) return null;
    canvas.width = Number($("width").value);
    canvas.height = Math.round((canvas.width * video.videoHeight) / video.videoWidth);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    const frame = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
    frame.getContext("2d").drawImage(canvas, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
    return { blob, frame };
  };
  use({ kind: "camera", stream, grab });
}

function stopCamera() {
  if (source?.kind !== "camera") return;
  for (const track of source.stream.getTracks()) {
    track.onended = null;
    track.stop();
  }
  source = null;
  controls();
}

async function openPicture(blob, name) {
  try {
    const frame = await createImageBitmap(blob);
    stopCamera();
    use({ kind: "picture", grab: async () => ({ blob, frame }) });
  } catch {
    status(`${name}: not a picture that this browser can read`, "error");
  }
}

function use(next_) {
  source = next_;
  paused = false;
  dirty = true;
  recent = [];
  shown = null;
  readable = 0;
  status(isOpen() ? "working" : $("status").textContent, isOpen() ? "wait" : "error");
  controls();
  next();
}

function controls() {
  const camera = source?.kind === "camera";
  $("camera").textContent = camera ? "Stop camera" : "Camera";
  $("camera").setAttribute("aria-pressed", camera);
  $("pause").disabled = !camera;
  $("pause").textContent = paused ? "Go on" : "Pause";
  $("hint").hidden = Boolean(source || shown);
}

function pause() {
  paused = !paused;
  controls();
  if (paused) status("paused", "wait");
  recent = [];
  next();
}

// What is shown

function show() {
  const { frame, answer } = shown;
  const { width, height } = answer.image;
  const space = { width: $("drop").clientWidth, height: 0.72 * window.innerHeight };
  const factor = fit($("view"), width, height, space);
  $("view").style.aspectRatio = `${width} / ${height}`;
  const context = $("view").getContext("2d");
  const scales = answer.maps?.scales ?? [];
  if (chosenScale >= scales.length) chosenScale = -1;
  if (scales.length) drawMaps(context, frame, chosenScale < 0 ? scales : [scales[chosenScale]], factor);
  else context.drawImage(frame, 0, 0, $("view").width, $("view").height);
  if (answer.raw) drawRaw(context, answer.raw, factor);
  if (answer.objects) drawObjects(context, answer.objects, factor);
  if (task() === "taught") drawSquare(context);
  showScales(frame, scales, width, height);
  const results = answer.classes ?? answer.objects;
  const best = results.slice(0, 5).map((entry) => `${entry.class} ${entry.score.toFixed(2)}`).join(", ");
  $("view").setAttribute("aria-label", best || "no results");
  showResults(results, !answer.classes);
  $("hint").hidden = true;
}

function showScales(frame, scales, width, height) {
  const strip = $("scales-strip");
  strip.hidden = scales.length < 2;
  if (strip.hidden) return strip.replaceChildren();
  const count = scales.length + 1;
  while (strip.children.length > count) strip.lastChild.remove();
  while (strip.children.length < count) {
    const button = document.createElement("button");
    const index = strip.children.length - 1;
    button.append(document.createElement("canvas"), document.createElement("span"));
    button.onclick = () => { chosenScale = index; if (shown) show(); };
    strip.append(button);
  }
  [...strip.children].forEach((button, i) => {
    const [canvas, caption] = button.children;
    const factor = fit(canvas, width, height, { width: 134, height: 134 });
    drawMaps(canvas.getContext("2d"), frame, i ? [scales[i - 1]] : scales, factor);
    const map = scales[i - 1];
    caption.textContent = map
      ? `${map.scaled[1]}×${map.scaled[0]}${map.flipped ? " mirrored" : ""}: ${map.shape[1] * map.shape[0]} windows, ${map.max.toFixed(2)}`
      : "all scales";
    button.setAttribute("aria-pressed", i - 1 === chosenScale);
  });
}

function showResults(results, areObjects) {
  $("results-title").textContent = areObjects ? `Objects (${results.length})` : "Classes";
  $("none").hidden = results.length > 0;
  const list = $("results");
  list.tabIndex = areObjects ? 0 : -1; // to be scrolled: its buttons are of classes
  const rows = results.slice(0, 30);
  while (list.children.length > rows.length) {
    const focused = list.lastChild.contains(document.activeElement);
    list.lastChild.remove();
    if (focused) list.lastChild?.firstChild.focus();
  }
  while (list.children.length < rows.length) {
    const item = document.createElement("li");
    item.innerHTML = '<button type="button"><span class="name"></span><span class="score"></span><span class="track"><div class="fill"></div></span></button>';
    item.firstChild.onclick = () => pin(item.dataset.name);
    list.append(item);
  }
  const largest = Math.max(1, ...rows.map((row) => row.score));
  rows.forEach((row, i) => {
    const item = list.children[i];
    item.dataset.name = row.class;
    item.firstChild.disabled = areObjects; // which have no heat maps
    item.querySelector(".name").textContent = row.class;
    item.querySelector(".score").textContent = areObjects
      ? `${row.score.toFixed(2)} · sum ${row.confidence_sum.toFixed(1)} of ${row.count}` : row.score.toFixed(3);
    item.querySelector(".fill").style.width = `${(100 * row.score) / largest}%`;
    item.firstChild.setAttribute("aria-pressed", !areObjects && $("maps").checked && $("label").value === row.class);
  });
}

/** The classes that were taught, each with the number of its pictures. */
function showTaught() {
  const counts = {};
  for (const { model, name } of lessons) if (model === $("model").value) counts[name] = (counts[name] ?? 0) + 1;
  $("taught").replaceChildren(...Object.entries(counts).map(([name, count]) => {
    const item = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button", title: `forget ${name}` });
    button.textContent = `${name} · ${count} ✕`;
    button.onclick = () => forget(name);
    item.append(button);
    return item;
  }));
  if (task() === "taught") showLabels(Object.keys(counts));
}

function showLabels(names) {
  const chosen = $("label").value;
  $("label").replaceChildren(new Option("the best class", ""), ...names.map((name) => new Option(name, name)));
  $("label").value = names.includes(chosen) ? chosen : "";
}

function learn() {
  const name = $("name").value.trim();
  if (!name) return $("name").focus();
  if (!source) return status("start the camera or open a picture first", "error");
  pupil = name;
  next();
}

/** Show the heat map of a class, or of the best one again. */
function pin(name) {
  if (!hasMaps()) return;
  $("label").value = $("maps").checked && $("label").value === name ? "" : name;
  $("maps").checked = true;
  sendSettings();
}

function showTimes(answer, own, roundTrip) {
  recent = [...recent, performance.now()].slice(-11);
  const rate = recent.length > 1 ? (1000 * (recent.length - 1)) / (recent.at(-1) - recent[0]) : 0;
  $("rate").hidden = false;
  $("fps").textContent = source?.kind === "camera" && rate ? rate.toFixed(1) : "–";
  $("total").textContent = roundTrip.toFixed(0);
  const stages = Object.entries(answer.ms).filter(([, ms]) => ms >= 0.05);
  const transfer = Math.max(0, roundTrip - answer.total_ms - (own - sent.own));
  const rows = [...stages, ["transfer", transfer], ["this page", own]];
  const total = rows.reduce((sum, [, ms]) => sum + ms, 0);
  const color = (i) => STAGE_COLORS[i % STAGE_COLORS.length];
  $("stages").replaceChildren(...rows.map(([, ms], i) => {
    const part = document.createElement("div");
    Object.assign(part.style, { width: `${(100 * ms) / total}%`, background: color(i) });
    return part;
  }));
  $("stage-table").tBodies[0].replaceChildren(...rows.map(([name, ms], i) => {
    const row = document.createElement("tr");
    if (name === "this page") row.className = "page";
    const key = document.createElement("td");
    const swatch = document.createElement("i");
    swatch.style.background = color(i);
    key.append(swatch, name);
    const value = document.createElement("td");
    value.textContent = `${ms.toFixed(1)} ms`;
    row.append(key, value);
    return row;
  }));
  document.documentElement.dataset.own = own.toFixed(2);
}

// Controls

const hasMaps = () => task() === "classify" || task() === "taught";
const task = () => document.querySelector("input[name=task]:checked").value;

function showModels() {
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  if (models.some(({ name }) => name === chosen)) $("model").value = chosen;
  else $("scales").value = CLASSIFIER_SCALES;
  modelChanged();
}

function modelChanged() {
  const model = models.find(({ name }) => name === $("model").value);
  for (const input of document.querySelectorAll("input[name=task]")) input.disabled = !can(model, input.value);
  if (!can(model, task())) document.querySelector(`input[name=task][value=${model.tasks[0]}]`).checked = true;
  taskChanged();
}

const can = (model, name) => (name === "taught" ? model.teaches : model.tasks.includes(name));

function taskChanged() {
  document.querySelector(".classify-only").hidden = !hasMaps();
  document.querySelector(".boxes-only").hidden = hasMaps();
  document.querySelector(".taught-only").hidden = task() !== "taught";
  if (task() !== "taught") showLabels(models.find(({ name }) => name === $("model").value).classes);
  showTaught();
}

function showSamples(samples) {
  $("samples").replaceChildren(...samples.map(({ title, path }) => {
    const button = Object.assign(document.createElement("button"), { title, type: "button" });
    button.append(Object.assign(document.createElement("img"), { src: path, alt: title }));
    button.onclick = async () => {
      try {
        openPicture(await (await fetch(path)).blob(), title);
      } catch {
        status("the server does not answer", "error");
      }
    };
    return button;
  }));
}

$("camera").onclick = () => { if (source?.kind === "camera") { stopCamera(); status("camera off", "wait"); } else startCamera(); };
$("open").onclick = () => $("file").click();
$("file").onchange = () => { if ($("file").files[0]) openPicture($("file").files[0], $("file").files[0].name); $("file").value = ""; };
$("pause").onclick = pause;
$("learn").onclick = learn;
$("name").onkeydown = (event) => { if (event.key === "Enter") { event.preventDefault(); learn(); } };
$("settings").onsubmit = (event) => event.preventDefault();
$("settings").onchange = (event) => {
  if (event.target === $("name")) return;
  if (event.target === $("model")) {
    const model = models.find(({ name }) => name === $("model").value);
    $("scales").value = model.tasks[0] === "classify" && model.scales === "six" ? CLASSIFIER_SCALES : "";
    $("stride").value = "";
    document.querySelector(`input[name=task][value=${model.tasks[0]}]`).checked = true;
    modelChanged();
  } else if (event.target.name === "task") taskChanged();
  recent = [];
  sendSettings();
};
$("drop").ondragover = (event) => { event.preventDefault(); $("drop").classList.add("over"); };
$("drop").ondragleave = () => $("drop").classList.remove("over");
$("drop").ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) openPicture(file, file.name);
};
window.addEventListener("resize", () => { if (shown) show(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type]), input[type=text], select")) return;
  const toggles = { h: "maps", b: "raw" };
  const key = event.key.toLowerCase();
  if (key === "c") $("camera").click();
  else if (key === "o") $("open").click();
  else if (key === "p" && !$("pause").disabled) pause();
  else if (key in toggles) $(toggles[key]).click();
  else if ("1234".includes(key)) document.querySelectorAll("input[name=task]")[key - 1]?.click();
});

start();
