// What a matte is used for on the device: lifting with the subject's own colours, splash, blur.

import { harmonic } from "/static/eraser.js";
import { least, most, windows } from "/static/guided.js";
import { resize } from "/static/matting.js";

const SMALL = 256, DETAIL = 0.2, TRUST = 0.02;

export function shrunk(width, height, side = SMALL) {
  const scale = Math.min(1, side / Math.max(width, height));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

/** The matte of the subject under a tap (shares of width and height), or of the dominant one; null where there is none. */
export function subject(alpha, width, height, tap) {
  const [w, h] = shrunk(width, height), small = resize(alpha, width, height, 1, w, h);
  const label = new Int32Array(w * h), found = [];
  for (let seed = 0; seed < w * h; seed++) {
    if (small[seed] <= 0.5 || label[seed]) continue;
    const number = found.length + 1, queue = [seed];
    let mass = 0, sx = 0, sy = 0;
    label[seed] = number;
    while (queue.length) {
      const n = queue.pop(), x = n % w, y = (n - x) / w;
      mass += small[n]; sx += small[n] * x; sy += small[n] * y;
      for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++) {
        const nx = x + dx, ny = y + dy, m = ny * w + nx;
        if (nx >= 0 && ny >= 0 && nx < w && ny < h && !label[m] && small[m] > 0.5) { label[m] = number; queue.push(m); }
      }
    }
    const off = Math.hypot(sx / mass + 0.5 - w / 2, sy / mass + 0.5 - h / 2) / (Math.hypot(w, h) / 2);
    found.push({ number, area: mass / (w * h), weight: mass * Math.exp(-(off ** 2) / (2 * 0.35 ** 2)) });
  }
  const real = found.filter((one) => one.area >= 0.002).sort((a, b) => b.weight - a.weight);
  if (!real.length) return null;
  const near = nearest(label, w, h, new Set(real.map((one) => one.number)));
  let chosen = real[0].number;
  if (tap) {
    const at = Math.min(h - 1, Math.floor(tap.y * h)) * w + Math.min(w - 1, Math.floor(tap.x * w));
    if (small[at] <= 0.1) return null;
    chosen = near[at];
  }
  if (real.length === 1) return alpha;
  const keep = resize(Float32Array.from(near, (n) => (n === chosen ? 1 : 0)), w, h, 1, width, height);
  return alpha.map((a, n) => a * keep[n]);
}

/** For each pixel the number of a nearest subject, spread breadth first. */
function nearest(label, w, h, real) {
  const out = Int32Array.from(label, (n) => (real.has(n) ? n : 0));
  let rim = [...out.keys()].filter((n) => out[n]);
  while (rim.length) {
    const next = [];
    for (const n of rim) {
      const x = n % w;
      for (const m of [x > 0 ? n - 1 : -1, x < w - 1 ? n + 1 : -1, n - w, n + w]) {
        if (m >= 0 && m < w * h && !out[m]) { out[m] = out[n]; next.push(m); }
      }
    }
    rim = next;
  }
  return out;
}

/** The subject's own colours and the background's, Uint8ClampedArray (h, w, 3) each: blur fusion (Forte 2021). */
export function layers(image, alpha) {
  const { width, height, data } = image, [w, h] = shrunk(width, height);
  const a = resize(alpha, width, height, 1, w, h), colours = new Float32Array(w * h * 3);
  const rgba = resize(data, width, height, 4, w, h);
  for (let n = 0; n < w * h; n++) for (let c = 0; c < 3; c++) colours[3 * n + c] = rgba[4 * n + c];
  let front = colours, back = colours;
  for (const radius of [Math.round(0.12 * Math.max(w, h)), Math.max(2, Math.round(0.015 * Math.max(w, h)))]) {
    const f = blurred(front, a, w, h, radius, false), b = blurred(back, a, w, h, radius, true);
    front = new Float32Array(f.length);
    back = new Float32Array(f.length);
    for (let n = 0; n < w * h; n++) for (let c = 0; c < 3; c++) {
      const k = 3 * n + c, rest = colours[k] - a[n] * f[k] - (1 - a[n]) * b[k];
      front[k] = Math.min(255, Math.max(0, f[k] + a[n] * rest));
      back[k] = Math.min(255, Math.max(0, b[k] + (1 - a[n]) * rest));
    }
  }
  seenThrough(rgba, a, front, back, w, h);
  const wide = [front, back].map((layer) => resize(layer, w, h, 3, width, height));
  const out = [new Uint8ClampedArray(width * height * 3), new Uint8ClampedArray(width * height * 3)];
  for (let n = 0; n < width * height; n++) for (let c = 0; c < 3; c++) {
    const k = 3 * n + c, front = alpha[n], back = 1 - front;
    // Each layer takes its share of the photo's detail, as on the server (mm_core/effects/foreground.py).
    const rest = (data[4 * n + c] - front * wide[0][k] - back * wide[1][k]) / (front ** 2 + DETAIL * back ** 2);
    out[0][k] = wide[0][k] + front * rest;
    out[1][k] = wide[1][k] + DETAIL * back * rest;
  }
  return { front: out[0], back: out[1] };
}

/** Where a soft region is wide (glass, steam), in place: the background goes on from around it, the rest is the subject's. */
function seenThrough(rgba, a, front, back, w, h) {
  const reach = Math.max(1, Math.round(0.01 * Math.max(w, h))), soft = a.map((value) => (value > 0.02 && value < 0.98 ? 1 : 0));
  const wide = windows(windows(soft, w, h, 1, reach, least), w, h, 1, reach, most);
  const unknown = a.map((value) => (value > 0.02 ? 1 : 0)), behind = Float32Array.from(rgba);
  if (!wide.includes(1) || !unknown.includes(0)) return;
  const share = box(box(wide, w, h, reach, 1, true), w, h, reach, 1, false);
  harmonic(behind, unknown, w, h);
  for (let n = 0; n < w * h; n++) if (share[n]) for (let c = 0; c < 3; c++) {
    const k = 3 * n + c, b = behind[4 * n + c], rest = rgba[4 * n + c] - a[n] * front[k] - (1 - a[n]) * b;
    const seen = front[k] + a[n] * rest / (a[n] ** 2 + TRUST * (1 - a[n]) ** 2);
    front[k] += share[n] * (Math.min(255, Math.max(0, seen)) - front[k]);
    back[k] += share[n] * (b - back[k]);
  }
}

/** Mean colour around each pixel, weighted by the matte (or by what it leaves). */
function blurred(colours, alpha, w, h, radius, inverse) {
  const weighted = new Float32Array(w * h * 4);
  for (let n = 0; n < w * h; n++) {
    const share = (inverse ? 1 - alpha[n] : alpha[n]) + 1e-5;
    for (let c = 0; c < 3; c++) weighted[4 * n + c] = colours[3 * n + c] * share;
    weighted[4 * n + 3] = share;
  }
  const sums = box(box(weighted, w, h, radius, 4, true), w, h, radius, 4, false);
  const out = new Float32Array(w * h * 3);
  for (let n = 0; n < w * h; n++) for (let c = 0; c < 3; c++) out[3 * n + c] = sums[4 * n + c] / sums[4 * n + 3];
  return out;
}

/** Running means along rows or columns; the picture's rim counts as it is. */
function box(data, w, h, radius, channels, alongRows) {
  const out = new Float32Array(data.length), lines = alongRows ? h : w, length = alongRows ? w : h;
  const step = alongRows ? channels : w * channels;
  for (let line = 0; line < lines; line++) {
    const start = (alongRows ? line * w : line) * channels;
    for (let c = 0; c < channels; c++) {
      let sum = 0;
      for (let n = 0; n < Math.min(radius, length); n++) sum += data[start + n * step + c];
      for (let n = 0; n < length; n++) {
        if (n + radius < length) sum += data[start + (n + radius) * step + c];
        if (n - radius > 0) sum -= data[start + (n - radius - 1) * step + c];
        out[start + n * step + c] = sum / (2 * radius + 1);
      }
    }
  }
  return out;
}

/** The cut-out as ImageData with soft alpha, cropped, and its box in pixels. */
export function cutout(image, alpha) {
  const { width, height } = image;
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) if (alpha[y * width + x] > 1 / 255) {
    left = Math.min(left, x); right = Math.max(right, x + 1); top = Math.min(top, y); bottom = Math.max(bottom, y + 1);
  }
  if (right <= left) return null;
  const { front } = layers(image, alpha), out = new ImageData(right - left, bottom - top);
  for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) {
    const n = y * width + x, m = 4 * ((y - top) * (right - left) + x - left);
    out.data.set(front.subarray(3 * n, 3 * n + 3), m);
    out.data[m + 3] = Math.round(255 * alpha[n]);
  }
  return { image: out, box: { left, top, right, bottom } };
}

/** A background made anew by `change(back, n)` → [r, g, b] under the unchanged subject. */
function over(image, alpha, change) {
  const { front, back } = layers(image, alpha), out = new ImageData(image.width, image.height);
  for (let n = 0; n < alpha.length; n++) {
    const colour = change(back, n), a = alpha[n];
    for (let c = 0; c < 3; c++) out.data[4 * n + c] = a * front[3 * n + c] + (1 - a) * colour[c];
    out.data[4 * n + 3] = 255;
  }
  return out;
}

export function splash(image, alpha) {
  return over(image, alpha, (back, n) => {
    const grey = 0.299 * back[3 * n] + 0.587 * back[3 * n + 1] + 0.114 * back[3 * n + 2];
    return [grey, grey, grey];
  });
}

export function blur(image, alpha) {
  const { width, height, data } = image, [w, h] = shrunk(width, height, 512);
  const a = resize(alpha, width, height, 1, w, h), rgba = resize(data, width, height, 4, w, h);
  const colours = new Float32Array(w * h * 3);
  for (let n = 0; n < w * h; n++) for (let c = 0; c < 3; c++) colours[3 * n + c] = rgba[4 * n + c];
  const hard = a.map((value) => (value > 0.02 ? 1 : 0));
  let soft = colours;
  for (let pass = 0; pass < 2; pass++) soft = blurred(soft, hard, w, h, Math.round(0.015 * Math.max(w, h)), true);
  const wide = resize(soft, w, h, 3, width, height);
  return over(image, alpha, (_, n) => wide.subarray(3 * n, 3 * n + 3));
}
