// A new sky on the device: mm_core/effects/sky.py's `replaced` and haze.py, step by step, with a picture of a sky.

import { layers, shrunk } from "/static/effects.js";
import { least, windows } from "/static/guided.js";
import { resize } from "/static/matting.js";

const FEATHER = 0.12, COLOUR_SHARE = 0.3, LIGHT_SHARE = 0.55;
const clip = (value, low, high) => Math.min(high, Math.max(low, value));
const WHITE = [0.950456, 1, 1.088754], CUT = 216 / 24389, SLOPE = 24389 / 27;

function lab(r, g, b) {
  const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const f = (t) => (t > CUT ? Math.cbrt(t) : (SLOPE * t + 16) / 116);
  const fx = f((0.412453 * x + 0.35758 * y + 0.180423 * z) / WHITE[0]);
  const fy = f(0.212671 * x + 0.71516 * y + 0.072169 * z);
  const fz = f((0.019334 * x + 0.119193 * y + 0.950227 * z) / WHITE[2]);
  return [116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)];
}

function rgb(l, a, b) {
  const fy = (l + 16) / 116, f = (t) => (t ** 3 > CUT ? t ** 3 : (116 * t - 16) / SLOPE);
  const x = WHITE[0] * f(fy + a / 500), y = f(fy), z = WHITE[2] * f(fy - b / 200);
  return [3.240479 * x - 1.53715 * y - 0.498535 * z, -0.969256 * x + 1.875991 * y + 0.041556 * z,
    0.055648 * x - 0.204043 * y + 1.057311 * z]
    .map((v) => 255 * (clip(v, 0, 1) <= 0.0031308 ? 12.92 * clip(v, 0, 1) : 1.055 * clip(v, 0, 1) ** (1 / 2.4) - 0.055));
}

/** Haze over the land, 0..1, and the airlight's colour, 0..255: the dark channel prior. */
export function haze(image, sky) {
  const { width, height, data } = image, [w, h] = shrunk(width, height, 400);
  const small = resize(data, width, height, 4, w, h, true), matte = resize(sky, width, height, 1, w, h);
  const darkest = (light) => windows(
    Float32Array.from(matte, (_, n) => Math.min(...[0, 1, 2].map((c) => small[4 * n + c] / 255 / light[c]))),
    w, h, 1, 7, least,
  );
  const dark = darkest([1, 1, 1]), order = [...dark.keys()].sort((a, b) => dark[a] - dark[b]);
  let light = [0, 0, 0];
  for (const n of order.slice(-Math.max(1, Math.floor(dark.length / 1000)))) {
    const here = [0, 1, 2].map((c) => small[4 * n + c] / 255);
    if (here[0] + here[1] + here[2] > light[0] + light[1] + light[2]) light = here;
  }
  const land = windows(matte.map((a) => (a < 0.05 ? 1 : 0)), w, h, 1, 7, least);
  const veiled = darkest(light.map((value) => Math.max(value, 0.05)));
  let sum = 0, count = 0;
  for (let n = 0; n < land.length; n++) if (land[n] > 0) { sum += 0.95 * veiled[n]; count++; }
  const share = count < 0.01 * land.length ? 0 : clip(sum / count, 0, 1);
  return { share, light: light.map((value) => 255 * value) };
}

/** Mean CIELAB of pixels (step numbers each), weighted, at long side 512. */
function meanLab(pixels, step, weight, width, height) {
  const [w, h] = shrunk(width, height, 512), total = [0, 0, 0];
  const small = resize(pixels, width, height, step, w, h, true), share = resize(weight, width, height, 1, w, h);
  let mass = 1e-6;
  for (let n = 0; n < share.length; n++) if (share[n] > 0) {
    const value = lab(small[step * n], small[step * n + 1], small[step * n + 2]);
    for (let c = 0; c < 3; c++) total[c] += share[n] * value[c];
    mass += share[n];
  }
  return total.map((value) => value / mass);
}

/** Per column the first row, from above, where land begins, smoothed along the columns. */
function heights(sky, width, height) {
  const first = new Float32Array(width).fill(height);
  for (let x = 0; x < width; x++) for (let y = 0; y < height; y++) if (sky[y * width + x] < 0.5) { first[x] = y; break; }
  const sigma = Math.max(1, 0.02 * width), reach = Math.min(width - 1, Math.round(4 * sigma));
  const bell = Float32Array.from({ length: 2 * reach + 1 }, (_, n) => Math.exp(-((n - reach) ** 2) / (2 * sigma ** 2)));
  const all = bell.reduce((a, b) => a + b);
  return first.map((_, x) => {
    let sum = 0;
    for (let d = -reach; d <= reach; d++) {
      const at = x + d;
      sum += bell[d + reach] * first[at < 0 ? -at : at >= width ? 2 * width - 2 - at : at];
    }
    return sum / all;
  });
}

/** The photo under another sky, ImageData; `sky`: its sky matte; `picture`: ImageData of a sky. null: it has no sky. */
export function newSky(image, sky, picture) {
  const { width, height, data } = image;
  let horizon = 0;
  for (let y = 0; y < height; y++) {
    let count = 0;
    for (let x = 0; x < width; x++) if (sky[y * width + x] > 0.5) count++;
    if (count / width > 0.02) horizon = y + 1;
  }
  if (!horizon) return null;
  // The picture covers the sky: its lower edge on the horizon, cut at the top and the sides.
  const scale = Math.max(horizon / picture.height, width / picture.width);
  const tall = Math.max(horizon, Math.round(picture.height * scale)), wide = Math.max(width, Math.round(picture.width * scale));
  const grown = resize(picture.data, picture.width, picture.height, 4, wide, tall, true), left = Math.floor((wide - width) / 2);
  const whole = new Uint8ClampedArray(data.length);
  for (let y = 0; y < height; y++) {
    const from = 4 * ((tall - horizon + Math.min(y, horizon - 1)) * wide + left);
    whole.set(grown.subarray(from, from + 4 * width), 4 * y * width);
  }
  const said = haze(image, sky), land = layers(image, sky.map((a) => 1 - a)).front;
  const before = meanLab(data, 4, sky, width, height), after = meanLab(whole, 4, sky, width, height);
  const low = [0, 0, 0];
  for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++) low[c] += whole[4 * ((horizon - 1) * width + x) + c] / width;
  const bright = (colour) => (colour[0] + colour[1] + colour[2]) / 3, ratio = bright(low) / Math.max(bright(said.light), 1);
  const veil = low.map((value, c) => clip(0.67 * value + 0.33 * said.light[c] * ratio, 0, 255));
  const light = clip((after[0] / Math.max(before[0], 5)) ** LIGHT_SHARE, 0.35, 1.25), colourful = Math.min(1, light);
  const edge = heights(sky, width, height), most = Math.min(0.85, 0.25 + said.share), out = new ImageData(width, height);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const n = y * width + x, a = sky[n];
    const fade = most * (1 - clip((edge[x] - y) / Math.max(1, FEATHER * horizon), 0, 1)) ** 2;
    let ground = [0, 0, 0];
    if (a < 1) {
      const [l, p, q] = lab(land[3 * n], land[3 * n + 1], land[3 * n + 2]);
      ground = rgb(clip(l * light, 0, 100), p * colourful + COLOUR_SHARE * (after[1] - before[1]),
        q * colourful + COLOUR_SHARE * (after[2] - before[2]));
    }
    for (let c = 0; c < 3; c++) {
      out.data[4 * n + c] = a * (whole[4 * n + c] * (1 - fade) + veil[c] * fade) + (1 - a) * ground[c];
    }
    out.data[4 * n + 3] = 255;
  }
  return out;
}
