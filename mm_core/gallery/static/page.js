// The page: moments, and one photo at a time in the editor. All text goes in as text, never as markup.

import { blur, cutout, splash, subject } from "/static/effects.js";
import { erase } from "/static/eraser.js";
import { Engine, pixels } from "/static/matting.js";
import { newSky } from "/static/sky.js";

const $ = (id) => document.getElementById(id);
const post = (body) => ({ method: "POST", headers: { "x-mm": "1" }, body });
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const canvas = $("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });

let about, engine;
/** What the editor holds: photo, image, decoder, alpha (whole), chosen (one subject), after, lifted, placed. */
let now = {};

async function start() {
  about = await (await fetch("/api/about")).json();
  showMoments();
  engine = await new Engine(about).start();
  const at = engine.where === "device" ? "on this device" : "on the server";
  const times = engine.where === "device" ? Object.values(engine.checks).map((c) => c.ms) : [];
  $("engine").textContent = engine.where === "device"
    ? `Model ${about.model.version} runs ${at}: golden pairs checked, ${Math.round(Math.min(...times))} ms a matte`
    : `Model ${about.model.version} runs ${at}: ${engine.why}`;
  $("engine").dataset.where = engine.where;
  window.moments = { about, engine, pixels, state: () => now };
}

function tile(photo) {
  const image = make("img", { src: `/photo/${photo.id}/320`, alt: "", loading: "lazy" });
  const what = photo.category ? `${photo.category.replace("_", " ")}, ${photo.name}` : photo.name;
  const button = make("button", { className: "tile", type: "button", ariaLabel: `Open ${what}` }, image);
  button.dataset.photo = photo.id;
  return button;
}

function showMoments() {
  const list = about.moments.map((moment) => {
    const section = make("section", { className: "moment" });
    const title = make("h2", {}, moment.title, make("span", { className: "tone" }, moment.tone));
    section.append(title, make("p", {}, moment.tone_why));
    if (moment.pieces.length) {
      section.append(make("div", { className: "grid pieces" }, ...moment.pieces.map((piece) => make("figure", {},
        make("img", { src: `/piece/${piece.file}`, alt: `${piece.function} of this moment`, loading: "lazy" }),
        make("figcaption", {}, piece.why)))));
    }
    const best = new Set(moment.best.map((b) => b.name));
    const photos = [...moment.photos].sort((a, b) => best.has(b.name) - best.has(a.name));
    section.append(make("div", { className: "grid" }, ...photos.map((photo) => {
      const button = tile(photo);
      button.addEventListener("click", () => open(photo));
      return button;
    })));
    return section;
  });
  const ids = new Set(about.moments.flatMap((m) => m.photos.map((p) => p.id)));
  const added = about.photos.filter((p) => !ids.has(p.id));
  if (added.length) {
    const grid = make("div", { className: "grid" }, ...added.map((photo) => {
      const button = tile(photo);
      button.addEventListener("click", () => open(photo));
      return button;
    }));
    list.unshift(make("section", { className: "moment" }, make("h2", {}, "Added"), grid));
  }
  $("moments").replaceChildren(...list);
}

function say(text) { $("said").textContent = text; }

async function open(photo) {
  now = { photo, decoder: about.decoder_of[photo.category] };
  $("editor-title").textContent = photo.name;
  $("feedback").hidden = true;
  $("lifted").hidden = true;
  $("targets").replaceChildren();
  if (!$("editor").open) $("editor").showModal();
  say("Loading the photo…");
  const image = await pixels(`/photo/${photo.id}/2048`);
  const decoder = now.decoder || (await (await fetch(`/api/decoder/${photo.id}`)).json()).decoder;
  if (now.photo !== photo) return;
  Object.assign(now, { image, decoder });
  draw(image);
  compare(null);
  say("Tap a subject to lift it.");
}

function draw(image) {
  canvas.width = image.width;
  canvas.height = image.height;
  context.putImageData(image, 0, 0);
}

/** Offers the slider between the photo and `after`; null hides it. */
function compare(after) {
  now.after = after;
  $("compare").hidden = !after;
  $("split").hidden = !after;
  $("slider").value = 100;
  if (after) wipe();
}

function wipe() {
  const share = $("slider").value / 100, at = Math.round(share * canvas.width);
  draw(now.image);
  if (at > 0) context.putImageData(now.after, 0, 0, 0, 0, at, canvas.height);
  const frame = canvas.getBoundingClientRect(), stage = $("stage").getBoundingClientRect();
  const height = frame.height;
  $("split").style.left = `${frame.left - stage.left + share * frame.width}px`;
  $("split").style.top = `${frame.top - stage.top}px`;
  $("split").style.height = `${height}px`;
}

/** The matte of the photo, made once. */
async function matte(decoder = now.decoder) {
  if (now.alphaOf !== decoder) {
    say(engine.where === "device" ? "Matting on this device…" : "Matting on the server…");
    await new Promise((done) => setTimeout(done));
    const { alpha, ms } = await engine.matte(now.photo.id, now.image, decoder);
    Object.assign(now, { alpha, alphaOf: decoder, ms });
  }
  return now.alpha;
}

async function lift(tap) {
  const alpha = await matte(), { width, height } = now.image;
  const chosen = subject(alpha, width, height, tap);
  if (!chosen) return say(tap ? "There is no subject here: tap on one." : "No subject was found.");
  now.chosen = chosen;
  now.tap = tap;
  const cut = cutout(now.image, chosen);
  now.cut = cut;
  now.placed = null;
  draw(now.image);
  compare(null);
  context.fillStyle = "rgb(0 0 0 / .5)";
  context.fillRect(0, 0, width, height);
  const picture = new OffscreenCanvas(cut.image.width, cut.image.height);
  picture.getContext("2d").putImageData(cut.image, 0, 0);
  now.bitmap = picture;
  now.blob = await picture.convertToBlob({ type: "image/png" });
  const lifted = $("lifted");
  URL.revokeObjectURL(lifted.src);
  lifted.src = URL.createObjectURL(now.blob);
  lifted.hidden = false;
  await lifted.decode();
  settle();
  showTargets();
  say(`Lifted in ${Math.round(now.ms)} ms ${engine.where === "device" ? "on this device" : "on the server"}. `
    + "Drag it onto a photo below, or download it.");
}

/** Puts the lifted picture where the subject stands in the photo. */
function settle() {
  const frame = canvas.getBoundingClientRect(), stage = $("stage").getBoundingClientRect();
  const scale = frame.width / canvas.width, { left, top } = now.cut.box, lifted = $("lifted");
  lifted.style.width = `${now.cut.image.width * scale}px`;
  lifted.style.left = `${frame.left - stage.left + left * scale}px`;
  lifted.style.top = `${frame.top - stage.top + top * scale - 6}px`;
}

function showTargets() {
  const others = about.photos.filter((p) => p.id !== now.photo.id).slice(0, 24);
  $("targets").replaceChildren(...others.map((photo) => {
    const button = tile(photo);
    button.setAttribute("role", "option");
    button.ariaLabel = `Put it on ${photo.name}`;
    button.addEventListener("click", () => place(photo));
    return button;
  }));
}

async function place(photo) {
  const back = await pixels(`/photo/${photo.id}/2048`);
  // Who was cut off by the frame stands on the lower edge.
  const grounded = now.cut.box.bottom >= now.image.height - 2;
  now.placed = { back, x: 0.5, y: grounded ? 0.7 : 0.65, size: 0.6 };
  $("lifted").hidden = true;
  compare(null);
  compose();
  $("stage").focus();
  say("Placed. Drag it, or use the arrow keys; plus and minus change its size.");
}

function compose() {
  const { back, x, y, size } = now.placed;
  draw(back);
  const tall = size * back.height, wide = tall * now.cut.image.width / now.cut.image.height;
  context.imageSmoothingQuality = "high";
  context.drawImage(now.bitmap, x * back.width - wide / 2, y * back.height - tall / 2, wide, tall);
}

async function serverMade(name, choice) {
  say("The server works on it, at full size…");
  const tap = now.tap && name !== "sky" ? `&x=${now.tap.x}&y=${now.tap.y}` : "";
  const answer = await fetch(`/api/apply/${now.photo.id}?function=${name}&choice=${choice}${tap}`, post(null));
  if (!answer.ok) return say((await answer.json()).error || "That did not work.");
  now.blob = await answer.blob();
  const bitmap = await createImageBitmap(now.blob, { resizeWidth: now.image.width, resizeHeight: now.image.height });
  context.drawImage(bitmap, 0, 0);
  compare(context.getImageData(0, 0, now.image.width, now.image.height));
  say("Done. Slide between before and after.");
}

const doings = {
  lift: () => lift(null),
  splash: () => changed(splash, "Colour splash"),
  blur: () => changed(blur, "Background blur"),
  sky: async () => {
    const name = about.skies[now.sky = ((now.sky ?? 0) + 1) % about.skies.length];
    if (engine.where === "server") return serverMade("sky", name);
    const sky = await matte("scenery");
    shown(newSky(now.image, sky, await pixels(`/sky/${name}`)), `New sky (${name})`, "No sky was found.");
  },
  eraser: async () => {
    if (engine.where === "server") return serverMade("eraser", "");
    const whole = await matte(), { width, height } = now.image, gone = subject(whole, width, height, now.tap);
    shown(gone && erase(now.image, gone, whole.map((a, n) => a - gone[n])), "Erased", "No subject was found.");
  },
  download: async () => {
    // What the server or a lift made is a file already; the rest is what the canvas shows.
    if (now.placed || (now.after && !now.blob)) {
      if (now.after) context.putImageData(now.after, 0, 0);
      now.blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    }
    if (!now.blob) return say("There is nothing to download yet.");
    const ending = now.blob.type === "image/png" ? "png" : "jpg";
    const name = `moment-${now.photo.id.slice(0, 8)}.${ending}`;
    make("a", { href: URL.createObjectURL(now.blob), download: name }).click();
    say("Downloaded.");
  },
  feedback: async () => {
    $("feedback").hidden = !$("feedback").hidden;
    if (!$("feedback").hidden) $("feedback").scrollIntoView();
  },
};

async function changed(effect, name) {
  const alpha = now.chosen || subject(await matte(), now.image.width, now.image.height, null);
  shown(alpha && effect(now.image, alpha), name, "No subject was found.");
}

/** Offers what was made on this device beside the photo; null: there was nothing to make it of. */
function shown(picture, name, otherwise) {
  if (!picture) return say(otherwise);
  $("lifted").hidden = true;
  now.placed = null;
  now.blob = null;
  draw(now.image);
  compare(picture);
  say(`${name}, made on this device. Slide between before and after.`);
}

/** Runs one thing at a time and says what went wrong. */
let busy = false;
async function guarded(work) {
  if (busy) return;
  busy = true;
  $("editor").setAttribute("aria-busy", "true");
  try { await work(); } catch (error) { say(String(error.message || error)); }
  $("editor").removeAttribute("aria-busy");
  busy = false;
}

document.querySelectorAll("[data-do]").forEach((button) =>
  button.addEventListener("click", () => guarded(doings[button.dataset.do])));
$("close").addEventListener("click", () => $("editor").close());
$("slider").addEventListener("input", wipe);
window.addEventListener("resize", () => { if (now.after) wipe(); else if (now.cut && !$("lifted").hidden) settle(); });

const share = (event) => {
  const frame = canvas.getBoundingClientRect();
  return { x: (event.clientX - frame.left) / frame.width, y: (event.clientY - frame.top) / frame.height };
};
const correcting = () => !$("feedback").hidden && $("feedback").said.value === "corrected";

let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  if (correcting()) {
    drag = { paint: share(event) };
    canvas.setPointerCapture(event.pointerId);
    return stroke(drag.paint, drag.paint);
  }
  if (now.placed) { drag = { from: share(event), x: now.placed.x, y: now.placed.y }; canvas.setPointerCapture(event.pointerId); }
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const at = share(event);
  if (drag.paint) {
    stroke(drag.paint, at);
    drag.paint = at;
    return;
  }
  Object.assign(now.placed, { x: drag.x + at.x - drag.from.x, y: drag.y + at.y - drag.from.y });
  compose();
});
canvas.addEventListener("pointerup", (event) => {
  const moved = drag;
  drag = null;
  if (!moved && now.image && !now.placed) guarded(() => lift(share(event)));
});

const lifted = $("lifted");
let carry = null;
lifted.addEventListener("pointerdown", (event) => {
  lifted.setPointerCapture(event.pointerId);
  carry = { x: event.clientX - lifted.offsetLeft, y: event.clientY - lifted.offsetTop, moved: 0 };
});
const under = (event) => {
  lifted.style.pointerEvents = "none";
  const tile = document.elementFromPoint(event.clientX, event.clientY)?.closest("#targets .tile");
  lifted.style.pointerEvents = "";
  return tile;
};
lifted.addEventListener("pointermove", (event) => {
  if (!carry) return;
  carry.moved += Math.abs(event.movementX) + Math.abs(event.movementY);
  lifted.style.left = `${event.clientX - carry.x}px`;
  lifted.style.top = `${event.clientY - carry.y}px`;
  const over = under(event);
  document.querySelectorAll("#targets .over").forEach((tile) => tile.classList.remove("over"));
  over?.classList.add("over");
});
lifted.addEventListener("pointerup", (event) => {
  const tile = carry && under(event);
  carry = null;
  const photo = tile && about.photos.find((p) => p.id === tile.dataset.photo);
  if (photo) guarded(() => place(photo)); else settle();
});

$("stage").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] }[event.key];
  if (event.key === "Enter" && !now.placed) return guarded(() => lift(null));
  if (!now.placed || (!step && !"+-=".includes(event.key))) return;
  event.preventDefault();
  if (step) Object.assign(now.placed, { x: now.placed.x + step[0], y: now.placed.y + step[1] });
  else now.placed.size = Math.min(2, Math.max(0.05, now.placed.size * (event.key === "-" ? 0.92 : 1.08)));
  compose();
});

/** Paints along a line, dot by dot: pointers report only some of the way. */
function stroke(from, to) {
  const { width, height } = now.image, radius = $("size").value / 100 * Math.max(width, height) / 2;
  const way = Math.hypot((to.x - from.x) * width, (to.y - from.y) * height), dots = Math.ceil(way / radius * 2) || 1;
  for (let n = 1; n <= dots; n++) {
    paint({ x: from.x + (to.x - from.x) * n / dots, y: from.y + (to.y - from.y) * n / dots }, radius);
  }
  showFixed();
}

/** Adds to or takes from the matte with a soft round brush. */
function paint(at, radius) {
  const { width, height } = now.image;
  const goal = Number($("feedback").brush.value), cx = at.x * width, cy = at.y * height;
  for (let y = Math.max(0, Math.floor(cy - radius)); y < Math.min(height, cy + radius); y++) {
    for (let x = Math.max(0, Math.floor(cx - radius)); x < Math.min(width, cx + radius); x++) {
      const force = Math.min(1, Math.max(0, (radius - Math.hypot(x - cx, y - cy)) / 2)), n = y * width + x;
      now.fixed[n] += force * (goal - now.fixed[n]);
    }
  }
}

function showFixed() {
  const shown = new ImageData(new Uint8ClampedArray(now.image.data), now.image.width);
  for (let n = 0; n < now.fixed.length; n++) {
    const out = 0.65 * (1 - now.fixed[n]);
    for (let c = 0; c < 3; c++) shown.data[4 * n + c] = (1 - out) * shown.data[4 * n + c] + out * [225, 30, 70][c];
  }
  draw(shown);
}

$("feedback").addEventListener("change", () => guarded(async () => {
  $("brush").hidden = !correcting();
  if (!correcting() || now.fixed) return;
  now.fixed = Float32Array.from(now.chosen || await matte());
  lifted.hidden = true;
  now.placed = null;
  compare(null);
  showFixed();
  say("Red is what will be left out. Paint to correct it.");
}));

$("feedback").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(async () => {
    const form = $("feedback"), said = form.said.value;
    let body = null;
    if (said === "corrected") {
      const picture = new ImageData(now.image.width, now.image.height);
      now.fixed.forEach((a, n) => picture.data.set([255 * a, 255 * a, 255 * a, 255], 4 * n));
      const sheet = new OffscreenCanvas(picture.width, picture.height);
      sheet.getContext("2d").putImageData(picture, 0, 0);
      body = await sheet.convertToBlob({ type: "image/png" });
    }
    const device = navigator.userAgentData?.platform || (navigator.maxTouchPoints ? "touch device" : "desktop");
    const asked = new URLSearchParams({
      photo: now.photo.id, said, consent: form.consent.checked ? "yes" : "no", group: form.group.value,
      device: device.replace(/[^\w .,()+-]/g, " ").slice(0, 80),
    });
    const answer = await fetch(`/api/feedback?${asked}`, post(body)), told = await answer.json();
    if (!answer.ok) return say(told.error);
    form.hidden = true;
    draw(now.image);
    now.fixed = null;
    say(told.new ? "Thank you: it goes into the next round of training." : "Thank you: we knew that already.");
  });
});

$("add").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (!file) return;
  const answer = await fetch("/api/photos", post(file)), told = await answer.json();
  event.target.value = "";
  if (!answer.ok) { $("engine").textContent = told.error; return; }
  about.photos.push(told);
  showMoments();
  open(told);
});

start();
