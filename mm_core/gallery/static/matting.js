// The promoted int8 model in this browser: the same preparation, network and finish as on the server
// (mm_core/model/preprocess.py), by onnxruntime-web, checked on the bundle's golden pairs before it is used.

import { guidedUpsample } from "/static/guided.js";

const post = { method: "POST", headers: { "x-mm": "1" } };

/** Weights of one axis: areas where it shrinks, bilinear between pixel centres where it grows (as OpenCV's). */
function axis(from, to) {
  const taps = [];
  const ratio = from / to;
  for (let i = 0; i < to; i++) {
    const weights = [];
    if (to < from) {
      const start = i * ratio, end = Math.min((i + 1) * ratio, from);
      for (let j = Math.floor(start); j < end - 1e-9; j++) {
        weights.push([Math.min(j, from - 1), (Math.min(j + 1, end) - Math.max(j, start)) / ratio]);
      }
    } else {
      const at = (i + 0.5) * ratio - 0.5, low = Math.floor(at), share = at - low;
      weights.push([Math.max(low, 0), 1 - share], [Math.min(low + 1, from - 1), share]);
    }
    taps.push(weights);
  }
  return taps;
}

/** (height, width, channels) numbers to another size. `round`: to whole numbers, as 8-bit pictures are. */
export function resize(data, width, height, channels, toWidth, toHeight, round = false) {
  const pass = (source, w, h, w2, h2) => {
    if (w === w2 && h === h2) return source;
    const across = axis(w, w2), down = axis(h, h2);
    const rows = new Float32Array(w2 * h * channels);
    for (let y = 0; y < h; y++) for (let x = 0; x < w2; x++) for (const [j, weight] of across[x]) {
      const from = (y * w + j) * channels, to = (y * w2 + x) * channels;
      for (let c = 0; c < channels; c++) rows[to + c] += weight * source[from + c];
    }
    const out = new Float32Array(w2 * h2 * channels);
    for (let y = 0; y < h2; y++) for (const [j, weight] of down[y]) {
      const from = j * w2 * channels, to = y * w2 * channels;
      for (let n = 0; n < w2 * channels; n++) out[to + n] += weight * rows[from + n];
    }
    if (round) for (let n = 0; n < out.length; n++) out[n] = Math.round(out[n]);
    return out;
  };
  const w1 = Math.min(width, toWidth), h1 = Math.min(height, toHeight);
  return pass(pass(data, width, height, w1, h1), w1, h1, toWidth, toHeight);
}

/** Pixels as ImageData of a picture's address, upright, sRGB. */
export async function pixels(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  const bitmap = await createImageBitmap(await answer.blob(), { imageOrientation: "from-image" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

export class Engine {
  /** Where mattes are made: `device` or `server`, and why. */
  where = "server";
  why = "";
  sessions = {};

  constructor(about) {
    this.about = about;
    [, , , this.size] = about.model.input.shape;
  }

  /** Loads the runtime and checks every decoder on its golden pair. Never throws: the server is there too. */
  async start() {
    const begun = performance.now();
    try {
      if (!this.about.runtime) throw new Error("onnxruntime-web is not installed on the server (make gallery)");
      this.ort = await import("/ort/ort.wasm.min.mjs");
      this.ort.env.wasm.wasmPaths = "/ort/";
      // Threads need shared memory, which browsers give to encrypted pages and this machine's own alone.
      this.ort.env.wasm.numThreads = 1;
      this.checks = {};
      for (const decoder of Object.keys(this.about.model.decoders)) this.checks[decoder] = await this.check(decoder);
      this.where = "device";
    } catch (error) {
      this.why = String(error.message || error);
    }
    this.startMs = performance.now() - begun;
    return this;
  }

  async session(decoder) {
    if (!this.sessions[decoder]) {
      const file = this.about.model.decoders[decoder];
      const bytes = await (await fetch(`/model/${file}`)).arrayBuffer();
      if (crypto.subtle) {
        const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
        const hex = Array.from(digest, (b) => b.toString(16).padStart(2, "0")).join("");
        if (hex !== this.about.model.sha256[file]) throw new Error(`${file} is not the file that the bundle names`);
      }
      this.sessions[decoder] = await this.ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    }
    return this.sessions[decoder];
  }

  /** The network on prepared pixels (S, S, 3), 0..255: Float32Array (S, S) in [0, 1]. */
  async run(square, decoder) {
    const { mean, std } = this.about.model.input, area = this.size * this.size;
    const planes = new Float32Array(3 * area);
    for (let n = 0; n < area; n++) for (let c = 0; c < 3; c++) {
      planes[c * area + n] = (square[3 * n + c] / 255 - mean[c]) / std[c];
    }
    const session = await this.session(decoder);
    const image = new this.ort.Tensor("float32", planes, [1, 3, this.size, this.size]);
    return (await session.run({ image })).alpha.data;
  }

  async check(decoder) {
    const raw = await (await fetch(`/golden/${decoder}`)).arrayBuffer(), area = this.size * this.size;
    const wanted = new Float32Array(raw.slice(3 * area));
    const begun = performance.now();
    const alpha = await this.run(new Uint8Array(raw, 0, 3 * area), decoder);
    let sum = 0, max = 0;
    for (let n = 0; n < area; n++) {
      const off = Math.abs(alpha[n] - wanted[n]);
      sum += off * off;
      max = Math.max(max, off);
    }
    const found = { mse: sum / area, max, ms: performance.now() - begun }, { tolerance } = this.about.model.golden;
    if (!(found.mse <= tolerance.mse && found.max <= tolerance.max)) {
      throw new Error(`${decoder}: this browser does not give the golden matte`);
    }
    return found;
  }

  /** The matte of a photo, Float32Array (height, width) in [0, 1], and the milliseconds that it took. */
  async matte(id, image, decoder) {
    const begun = performance.now();
    if (this.where === "server") {
      const answer = await fetch(`/api/matte/${id}?decoder=${decoder}`, post);
      if (!answer.ok) throw new Error(`The server made no matte (${answer.status})`);
      const address = URL.createObjectURL(await answer.blob());
      const grey = new Image();
      grey.src = address;
      await grey.decode();
      const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext("2d");
      context.drawImage(grey, 0, 0, image.width, image.height);
      URL.revokeObjectURL(address);
      const data = context.getImageData(0, 0, image.width, image.height).data;
      const alpha = Float32Array.from({ length: image.width * image.height }, (_, n) => data[4 * n] / 255);
      return { alpha, ms: performance.now() - begun };
    }
    const { width, height, data } = image;
    const rgb = new Uint8Array(width * height * 3);
    for (let n = 0; n < width * height; n++) rgb.set(data.subarray(4 * n, 4 * n + 3), 3 * n);
    const square = resize(rgb, width, height, 3, this.size, this.size, true);
    const alpha = guidedUpsample(await this.run(square, decoder), this.size, image);
    return { alpha, ms: performance.now() - begun };
  }
}
