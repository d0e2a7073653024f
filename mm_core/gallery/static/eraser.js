// Takes a subject out on the device: what is smooth goes on from the rim, detail comes from where the photo looks like
// that. The server's `blend` (mm_core/effects/eraser.py) is nearer to what was hidden; this one needs no server.

import { shrunk } from "/static/effects.js";
import { resize } from "/static/matting.js";

const SMALL = 160, TEXTURE = 0.75, FINE = 0.008, RING = 4, TILE = 20, OVER = 1.9, ROUNDS = 400;

/** The photo without what a matte (height, width) holds, ImageData; `keep`: matte of what nothing is copied from. */
export function erase(image, gone, keep) {
  const { width, height, data } = image, hole = grown(gone, width, height), out = new ImageData(width, height);
  const [w, h] = shrunk(width, height, SMALL), small = Float32Array.from(resize(data, width, height, 4, w, h));
  const unknown = resize(hole, width, height, 1, w, h).map((a) => (a > 0 ? 1 : 0));
  const taken = resize(keep, width, height, 1, w, h).map((a, n) => (a > 0.1 || unknown[n] ? 1 : 0));
  harmonic(small, unknown, w, h);
  const wide = resize(small, w, h, 4, width, height);
  out.data.set(data);
  for (let n = 0; n < hole.length; n++) if (hole[n]) out.data.set([wide[4 * n], wide[4 * n + 1], wide[4 * n + 2]], 4 * n);
  const moved = offsets(small, unknown, taken, w, h);
  return textured(out, hole, (x, y) => moved.get(tile(x * w / width, y * h / height, w)), width / w);
}

/** Where a matte reaches and half its soft band beyond: Uint8Array of 0 and 1. */
function grown(alpha, width, height) {
  let soft = 0, contour = 0;
  for (let n = 0; n < alpha.length; n++) {
    if (alpha[n] > 0.02 && alpha[n] < 0.98) soft++;
    if (alpha[n] > 0.5 && !(alpha[n - 1] > 0.5 && alpha[n + 1] > 0.5 && alpha[n - width] > 0.5 && alpha[n + width] > 0.5)) {
      contour++;
    }
  }
  const long = Math.max(width, height), band = contour ? soft / contour / 2 : 0;
  const reach = Math.round(Math.min(band, 0.02 * long)) + Math.max(1, Math.round(0.002 * long));
  const seen = Uint8Array.from(alpha, (a) => (a > 0.02 ? 1 : 0));
  return spread(spread(seen, height, width, width, 1, reach), width, height, 1, width, reach);
}

/** Ones spread `reach` both ways along lines. */
function spread(mask, lines, length, lineStep, step, reach) {
  const out = new Uint8Array(mask.length);
  for (let l = 0; l < lines; l++) for (const way of [1, -1]) {
    let left = 0;
    for (let k = 0; k < length; k++) {
      const at = l * lineStep + (way > 0 ? k : length - 1 - k) * step;
      left = mask[at] ? reach + 1 : left - 1;
      if (left > 0) out[at] = 1;
    }
  }
  return out;
}

/** Laplace's equation where a pixel is unknown, in place, by successive over-relaxation. */
export function harmonic(pixels, unknown, w, h) {
  const inside = [...unknown.keys()].filter((n) => unknown[n]), mean = [0, 0, 0];
  for (let n = 0; n < unknown.length; n++) if (!unknown[n]) for (let c = 0; c < 3; c++) mean[c] += pixels[4 * n + c];
  for (const n of inside) for (let c = 0; c < 3; c++) pixels[4 * n + c] = mean[c] / Math.max(1, unknown.length - inside.length);
  for (let round = 0; round < ROUNDS; round++) for (const n of inside) {
    const x = n % w, y = (n - x) / w;
    const left = x ? n - 1 : n, right = x < w - 1 ? n + 1 : n, up = y ? n - w : n, down = y < h - 1 ? n + w : n;
    for (let c = 0; c < 3; c++) {
      const goal = (pixels[4 * left + c] + pixels[4 * right + c] + pixels[4 * up + c] + pixels[4 * down + c]) / 4;
      pixels[4 * n + c] += OVER * (goal - pixels[4 * n + c]);
    }
  }
}

/** Per tile of TILE small pixels that touches the hole: by how many to move to where the photo is most like it. */
function offsets(pixels, unknown, taken, w, h) {
  const found = new Map();
  for (let top = 0; top < h; top += TILE) for (let left = 0; left < w; left += TILE) {
    const bottom = Math.min(h, top + TILE), right = Math.min(w, left + TILE), cells = [];
    let inside = false;
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) if (unknown[y * w + x]) inside = true;
    if (!inside) continue;
    for (let y = Math.max(0, top - RING); y < Math.min(h, bottom + RING); y += 2) {
      for (let x = Math.max(0, left - RING); x < Math.min(w, right + RING); x += 2) cells.push([x, y]);
    }
    let least = Infinity;
    for (let dy = -top; dy <= h - bottom; dy++) for (let dx = -left; dx <= w - right; dx++) {
      let sum = 0, count = 0;
      for (const [x, y] of cells) {
        const n = y * w + x, m = n + dy * w + dx, out = x + dx < 0 || x + dx >= w || y + dy < 0 || y + dy >= h;
        if (out) continue;
        if (taken[m]) { count = 0; break; }
        for (let c = 0; c < 3; c++) sum += (pixels[4 * n + c] - pixels[4 * m + c]) ** 2;
        count++;
      }
      if (count && sum / count < least) { least = sum / count; found.set(tile(left, top, w), [dx, dy]); }
    }
  }
  return found;
}

const tile = (x, y, w) => Math.floor(y / TILE) * Math.ceil(w / TILE) + Math.floor(x / TILE);

/** Adds what is finer than a blur where the hole is, from as many small pixels away as `offset(x, y)` says; in place. */
function textured(image, hole, offset, scale) {
  const { width, height, data } = image, reach = Math.max(1, Math.round(FINE * Math.max(width, height)));
  const before = data.slice(), area = (2 * reach + 1) ** 2;
  // Sums of all that lies above and to the left: the blur of any pixel takes four of them.
  const sums = new Float64Array((width + 1) * (height + 1) * 3), step = 3 * (width + 1);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++) {
    const at = (y + 1) * step + 3 * (x + 1) + c;
    sums[at] = before[4 * (y * width + x) + c] + sums[at - 3] + sums[at - step] - sums[at - step - 3];
  }
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const n = y * width + x, away = hole[n] && offset(x, y);
    if (!away) continue;
    const sx = x + Math.round(away[0] * scale), sy = y + Math.round(away[1] * scale);
    if (sx < reach || sy < reach || sx >= width - reach || sy >= height - reach) continue;
    for (let c = 0; c < 3; c++) {
      const low = (sy - reach) * step + c, high = (sy + reach + 1) * step + c;
      const left = 3 * (sx - reach), right = 3 * (sx + reach + 1);
      const mean = (sums[high + right] - sums[high + left] - sums[low + right] + sums[low + left]) / area;
      data[4 * n + c] = before[4 * n + c] + TEXTURE * (before[4 * (sy * width + sx) + c] - mean);
    }
  }
  return image;
}
