// Pictures, heat maps and boxes on a canvas.

// Colours of scores from 0 to 1, at even steps, as in render.py.
const COLORS = ["000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4"]
  .map((color) => [0, 2, 4].map((i) => parseInt(color.slice(i, i + 2), 16)));
const BOX_COLORS = ["#ffd166", "#4cc9f0", "#f72585", "#80ed99", "#ff9f1c", "#b8a1ff", "#2ec4b6", "#ff6b6b", "#c0f000", "#f4a3d8"];

const TABLE = Array.from({ length: 256 }, (_, value) => {
  const position = (value / 255) * (COLORS.length - 1);
  const i = Math.min(Math.floor(position), COLORS.length - 2);
  const color = COLORS[i].map((low, k) => low + (position - i) * (COLORS[i + 1][k] - low));
  return [...color, 255 * Math.min(Math.max(0.25 + value / 255, 0), 0.8)];
});

export function colorOf(name) {
  let hash = 0;
  for (const letter of name) hash = (31 * hash + letter.codePointAt(0)) >>> 0;
  return BOX_COLORS[hash % BOX_COLORS.length];
}

/** Fit the canvas to the space that it has, at the screen's resolution; returns canvas pixels per image pixel. */
export function fit(canvas, width, height, space) {
  const factor = (Math.min(space.width / width, space.height / height) || 1) * (window.devicePixelRatio || 1);
  canvas.width = Math.max(1, Math.round(width * factor));
  canvas.height = Math.max(1, Math.round(height * factor));
  return canvas.width / width;
}

/** A map in colours, with one cell more on each side, transparent, so that its edges are soft. */
function mapCanvas(map) {
  const [height, width] = map.shape;
  const bytes = atob(map.values);
  const pixels = new ImageData(width + 2, height + 2);
  for (let row = 0; row < height + 2; row++) {
    for (let column = 0; column < width + 2; column++) {
      const inside = [Math.min(Math.max(row - 1, 0), height - 1), Math.min(Math.max(column - 1, 0), width - 1)];
      const color = TABLE[bytes.charCodeAt(inside[0] * width + inside[1])];
      const at = 4 * (row * (width + 2) + column);
      pixels.data.set(color, at);
      if (inside[0] !== row - 1 || inside[1] !== column - 1) pixels.data[at + 3] = 0;
    }
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: width + 2, height: height + 2 });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** The picture in grey, with the heat maps over it. */
export function drawMaps(context, frame, maps, factor) {
  const { width, height } = context.canvas;
  context.drawImage(frame, 0, 0, width, height);
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "source-over";
  maps.forEach((map, i) => {
    const [left, top, right, bottom] = map.box.map((edge) => edge * factor);
    const [across, down] = [(right - left) / map.shape[1], (bottom - top) / map.shape[0]];
    context.globalAlpha = 1 / (i + 1);  // the mean of several
    context.drawImage(mapCanvas(map), left - across, top - down, right - left + 2 * across, bottom - top + 2 * down);
  });
  context.globalAlpha = 1;
}

/** Boxes before merging, thin; the stronger the higher their score. */
export function drawRaw(context, raw, factor) {
  context.lineWidth = 1;
  for (const { box, score, class: name } of raw) {
    context.globalAlpha = 0.1 + 0.6 * Math.min(score, 1);
    context.strokeStyle = colorOf(name);
    strokeBox(context, box, factor);
  }
  context.globalAlpha = 1;
}

/** Merged boxes, with class, score and accumulated confidence. */
export function drawObjects(context, objects, factor) {
  const unit = window.devicePixelRatio || 1;
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const object of [...objects].reverse()) {
    const color = colorOf(object.class);
    context.lineWidth = 3 * unit;
    context.strokeStyle = "#0009";
    strokeBox(context, object.box, factor);
    context.lineWidth = 2 * unit;
    context.strokeStyle = color;
    strokeBox(context, object.box, factor);
    const text = `${object.class}  ${object.confidence_sum.toFixed(1)}`;
    const width = context.measureText(text).width + 8 * unit;
    const x = Math.min(Math.max(0, object.box[0] * factor), context.canvas.width - width);
    const y = Math.max(0, object.box[1] * factor - 18 * unit);
    context.fillStyle = color;
    context.fillRect(x, y, width, 18 * unit);
    context.fillStyle = "#14101d";
    context.fillText(text, x + 4 * unit, y + 2.5 * unit);
  }
}

function strokeBox(context, [left, top, right, bottom], factor) {
  context.strokeRect(left * factor, top * factor, (right - left) * factor, (bottom - top) * factor);
}

/** The square in the middle, of which a class is learned. */
export function drawSquare(context) {
  const { width, height } = context.canvas;
  const unit = window.devicePixelRatio || 1;
  const side = Math.min(width, height) - 4 * unit;
  context.setLineDash([10 * unit, 8 * unit]);
  context.lineWidth = 2 * unit;
  context.strokeStyle = "#fffc";
  context.strokeRect((width - side) / 2, (height - side) / 2, side, side);
  context.setLineDash([]);
}
