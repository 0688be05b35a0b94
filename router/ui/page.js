// The page of the router: a chat about images, by the same API that any client uses.
// Nothing is kept: the conversation lives in this tab.

const $ = (id) => document.getElementById(id);
const MAX_IMAGE_BYTES = 20 * 1024 * 1024;

// How an answer ended, where that is worth a word.
const ENDS = { length: "; cut at the longest answer", stopped: "; stopped" };

let turns = [];        // {role, text, images: [data URI], model}
let images = [];       // of the next question
let running = null;    // AbortController while an answer comes

function status(text, isError = false) {
  const line = $("status");
  line.textContent = text;
  line.style.color = isError ? "var(--bad)" : "";
}

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

async function loadModels() {
  const picked = $("model").value || new URLSearchParams(location.search).get("model");
  try {
    const answer = await fetch("/v1/models", { headers: headers() });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error?.message ?? answer.statusText);
    const names = body.data.map((model) => model.id);
    $("model").replaceChildren(...names.map((name) => new Option(name, name, false, name === picked)));
    status(names.length ? "" : "No model is deployed yet.");
  } catch (error) {
    status(`Models: ${error.message}`, true);
  }
}

function message(turn) {
  if (!turn.images?.length) return { role: turn.role, content: turn.text };
  const pictures = turn.images.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role: turn.role, content: [...pictures, { type: "text", text: turn.text }] };
}

function request(messages) {
  const system = $("system").value.trim();
  return {
    model: $("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages.map(message)],
    temperature: Number($("temperature").value),
    top_p: Number($("top_p").value),
    max_tokens: Number($("max_tokens").value),
    stream: true,
    stream_options: { include_usage: true },
  };
}

// The data of each event, however the bytes are chunked.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (data.length) yield data.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

function article(turn, index) {
  const element = document.createElement("article");
  element.className = turn.role;
  const head = document.createElement("header");
  const who = document.createElement("h2");
  who.textContent = turn.role === "user" ? "You" : turn.model;
  who.id = `turn-${index}`;
  element.setAttribute("aria-labelledby", who.id);
  head.append(who);
  element.append(head);
  if (turn.role === "user") {
    const edit = document.createElement("button");
    edit.type = "button";
    edit.textContent = "Edit";
    edit.setAttribute("aria-label", "Edit this question");
    edit.addEventListener("click", () => editTurn(index));
    head.append(edit);
  }
  for (const [number, url] of (turn.images ?? []).entries()) {
    const picture = document.createElement("img");
    picture.src = url;
    picture.alt = `Image ${number + 1} of your question`;
    element.append(picture);
  }
  const text = document.createElement("p");
  text.textContent = turn.text;
  element.append(text);
  return element;
}

function draw() {
  $("empty").hidden = turns.length > 0;
  $("chat").replaceChildren($("empty"), ...turns.map(article));
  $("again").disabled = running !== null || !turns.some((turn) => turn.role === "user");
  $("chat").scrollTop = $("chat").scrollHeight;
}

function drawImages() {
  $("images").replaceChildren(...images.map((url, index) => {
    const item = document.createElement("li");
    const picture = document.createElement("img");
    picture.src = url;
    picture.alt = `Image ${index + 1}`;
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove image ${index + 1}`);
    remove.addEventListener("click", () => { images.splice(index, 1); drawImages(); $("text").focus(); });
    item.append(picture, remove);
    return item;
  }));
}

async function addFiles(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    if (file.size > MAX_IMAGE_BYTES) { status(`${file.name} is larger than 20 MiB.`, true); continue; }
    images.push(await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(file);
    }));
  }
  drawImages();
  $("text").focus();
}

function editTurn(index) {
  if (running) return;
  const turn = turns[index];
  turns = turns.slice(0, index);
  images = [...(turn.images ?? [])];
  $("text").value = turn.text;
  drawImages();
  draw();
  $("text").focus();
}

// Screen readers hear the answer sentence by sentence, not word by word.
function speaker() {
  const region = $("spoken");
  region.replaceChildren();
  let said = 0;
  return (text, whole = false) => {
    const rest = text.slice(said);
    const ends = [...rest.matchAll(/[.!?。！？](?=\s)|\n/g)];
    const end = whole ? rest.length : ends.length ? ends.at(-1).index + 1 : 0;
    if (!rest.slice(0, end).trim()) return;
    const sentence = document.createElement("p");
    sentence.textContent = rest.slice(0, end);
    region.append(sentence);
    said += end;
  };
}

async function answer() {
  const turn = { role: "assistant", text: "", model: $("model").value };
  const body = request(turns);
  const speak = speaker();
  turns.push(turn);
  running = new AbortController();
  draw();
  $("stop").disabled = false;
  $("send").disabled = true;
  const element = $("chat").lastElementChild;
  const text = element.querySelector("p");
  const began = performance.now();
  let first = 0, pieces = 0, usage = null, failure = null, finish = null;
  status("Waiting for the first word…");
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) {
      const problem = await response.json().catch(() => null);
      throw new Error(problem?.error?.message ?? `${response.status} ${response.statusText}`);
    }
    for await (const data of events(response.body)) {
      if (data === "[DONE]") { finish ??= "stop"; break; }
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      finish = event.choices?.[0]?.finish_reason ?? finish;
      const piece = event.choices?.[0]?.delta?.content ?? "";
      if (!piece) continue;
      first ||= performance.now();
      pieces += 1;
      turn.text += piece;
      const nearEnd = $("chat").scrollHeight - $("chat").scrollTop - $("chat").clientHeight < 80;
      text.textContent = turn.text;
      speak(turn.text);
      if (nearEnd) $("chat").scrollTop = $("chat").scrollHeight;
    }
    if (!finish) throw new Error("the answer broke off");
  } catch (error) {
    failure = error.name === "AbortError" ? null : error;
    finish = error.name === "AbortError" ? "stopped" : finish;
  }
  speak(turn.text, true);
  running = null;
  $("stop").disabled = true;
  $("send").disabled = false;
  draw();
  const note = document.createElement("p");
  note.className = failure ? "error" : "note";
  const seconds = (performance.now() - (first || began)) / 1000;
  const tokens = usage?.completion_tokens ?? pieces;
  note.textContent = failure
    ? `Error: ${failure.message}`
    : `${tokens} tokens, first after ${((first || performance.now()) - began).toFixed(0)} ms, `
      + `${(tokens / Math.max(seconds, 0.001)).toFixed(1)} per second${ENDS[finish] ?? ""}`;
  $("chat").lastElementChild.append(note);
  if (!turn.text) turns.pop();
  status(failure ? "The answer failed; see the conversation." : "The answer is complete.", Boolean(failure));
  $("again").disabled = false;
}

function send() {
  const text = $("text").value.trim();
  if (running || (!text && !images.length)) return;
  turns.push({ role: "user", text: text || "Describe this image.", images });
  images = [];
  $("text").value = "";
  drawImages();
  answer();
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

async function copyCurl() {
  const pending = $("text").value.trim();
  const messages = pending || images.length
    ? [...turns, { role: "user", text: pending || "Describe this image.", images }]
    : turns.filter((turn, index) => turn.role === "user" || index < turns.length - 1);
  const key = $("key").value.trim() ? ` -H "authorization: Bearer $LLAVA_API_KEY"` : "";
  const command = `curl -N ${location.origin}/v1/chat/completions -H 'content-type: application/json'${key} `
    + `--data-binary @- <<'END'\n${JSON.stringify(request(messages))}\nEND\n`;
  try {
    await navigator.clipboard.writeText(command);
    status("Copied as curl.");
  } catch {
    // Outside a secure context there is no clipboard: offer the text to be copied by hand.
    window.prompt("Copy this command", `curl -N ${location.origin}/v1/chat/completions --data-binary ${shellQuoted(JSON.stringify(request(messages)))}`);
  }
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("stop").addEventListener("click", () => running?.abort());
$("again").addEventListener("click", () => {
  const last = turns.findLastIndex((turn) => turn.role === "user");
  if (running || last < 0) return;
  turns = turns.slice(0, last + 1);
  answer();
});
$("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  images = [];
  drawImages();
  draw();
  status("");
  $("text").focus();
});
$("curl").addEventListener("click", copyCurl);
$("file").addEventListener("change", () => { addFiles($("file").files); $("file").value = ""; });
$("key").addEventListener("change", loadModels);
for (const button of $("examples").querySelectorAll("button")) {
  button.addEventListener("click", () => { $("text").value = button.textContent; $("text").focus(); });
}
for (const slider of document.querySelectorAll("input[type=range]")) {
  const show = () => { document.querySelector(`output[for=${slider.id}]`).textContent = slider.value; };
  slider.addEventListener("input", show);
  show();
}
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); addFiles(files); }
});
const drop = $("drop");
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  addFiles(event.dataTransfer.files);
});

loadModels();
draw();
