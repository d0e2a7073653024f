// From the network's matte to one along the photo's edges: mm_core/model/upsample.py, step by step.

import { resize } from "/static/matting.js";

const EPSILON = 1e-4, BAND = 3;

/** (height, width, channels) numbers with `change(values of a window's line)` along rows, then along columns. */
export function windows(data, width, height, channels, radius, change, mirrored = false) {
  const pass = (source, lines, length, lineStep, step) => {
    const out = new Float32Array(source.length), line = new Float32Array(2 * radius + 1);
    for (let l = 0; l < lines; l++) for (let n = 0; n < length; n++) for (let c = 0; c < channels; c++) {
      for (let d = -radius; d <= radius; d++) {
        let at = n + d;
        if (mirrored && at < 0) at = -at;
        if (mirrored && at >= length) at = 2 * length - 2 - at;
        line[d + radius] = source[l * lineStep + Math.min(length - 1, Math.max(0, at)) * step + c];
      }
      out[l * lineStep + n * step + c] = change(line);
    }
    return out;
  };
  const across = pass(data, height, width, width * channels, channels);
  return pass(across, width, height, channels, width * channels);
}

const mean = (line) => { let sum = 0; for (const value of line) sum += value; return sum / line.length; };
export const most = (line) => Math.max(...line);
export const least = (line) => Math.min(...line);

/** alpha (side, side) in [0, 1] and ImageData of a photo → Float32Array (height, width). */
export function guidedUpsample(alpha, side, image) {
  const { width, height, data } = image, area = side * side;
  const plain = resize(alpha, side, side, 1, width, height).map((a) => Math.min(1, Math.max(0, a)));
  if (width * height <= area) return plain;
  const small = resize(data, width, height, 4, side, side, true);
  // Sums of what the linear function of each window needs: colours, alpha, their products.
  const terms = new Float32Array(area * 13);
  for (let n = 0; n < area; n++) {
    const [r, g, b] = [small[4 * n] / 255, small[4 * n + 1] / 255, small[4 * n + 2] / 255], a = alpha[n];
    terms.set([r, g, b, a, r * r, r * g, r * b, g * g, g * b, b * b, r * a, g * a, b * a], 13 * n);
  }
  const means = windows(terms, side, side, 13, 1, mean), linear = new Float32Array(area * 4);
  for (let n = 0; n < area; n++) {
    const [r, g, b, a, rr, rg, rb, gg, gb, bb, ra, ga, ba] = means.subarray(13 * n, 13 * n + 13);
    const slope = solved(
      [rr - r * r + EPSILON, rg - r * g, rb - r * b, gg - g * g + EPSILON, gb - g * b, bb - b * b + EPSILON],
      [ra - r * a, ga - g * a, ba - b * a],
    );
    linear.set([...slope, a - slope[0] * r - slope[1] * g - slope[2] * b], 4 * n);
  }
  const wide = resize(windows(linear, side, side, 4, 1, mean), side, side, 4, width, height);
  const share = resize(band(alpha, side), side, side, 1, width, height);
  for (let n = 0; n < plain.length; n++) if (share[n] > 0) {
    let along = wide[4 * n + 3];
    for (let c = 0; c < 3; c++) along += wide[4 * n + c] * data[4 * n + c] / 255;
    plain[n] += share[n] * (Math.min(1, Math.max(0, along)) - plain[n]);
  }
  return plain;
}

/** x of A x = y, A symmetric and given by its upper half. */
function solved([a, b, c, d, e, f], [x, y, z]) {
  const [p, q, r] = [d * f - e * e, c * e - b * f, b * e - c * d], whole = a * p + b * q + c * r;
  return [
    (p * x + q * y + r * z) / whole,
    (q * x + (a * f - c * c) * y + (b * c - a * e) * z) / whole,
    (r * x + (b * c - a * e) * y + (a * d - b * b) * z) / whole,
  ];
}

/** 1 around soft pixels and hard edges, falling to 0 over BAND pixels. */
function band(alpha, side) {
  const high = windows(alpha, side, side, 1, 1, most), low = windows(alpha, side, side, 1, 1, least);
  const edge = Float32Array.from(high, (value, n) => (value - low[n] > 0.1 ? 1 : 0));
  return windows(windows(edge, side, side, 1, BAND, most), side, side, 1, BAND, mean, true);
}
