/** One turn as it is seen: text, sound with its wave, notes, and the codes as a picture. */

import { RATE, joined, wavOf } from "./sound.js";

const PEAK_SAMPLES = 480; // 20 ms
const CODES_A_LINE = 25; // 2 s
const CELL = 10;

let playing = null; // one message at a time

/** What falls silent when a message is played: sound that does not come from a message. */
export const live = { silence() {} };

/** Ends the playback of a message, if there is one. */
export function pausePlayback() {
  playing?.pause();
}

export class Message {
  constructor(role, codebook) {
    const copy = document.getElementById("message").content.cloneNode(true);
    this.element = copy.firstElementChild;
    this.element.classList.add(role);
    this.element.querySelector(".speaker").textContent = role === "user" ? "You:" : "Model:";
    Object.assign(this, { role, codebook, text: "", chunks: [], codes: [], samples: 0, peaks: [], heard: 0, facts: {} });
    this.find = (selector) => this.element.querySelector(selector);
    this.find(".play").onclick = () => this.toggle();
    this.find(".wave input").oninput = ({ target }) => this.seek(Number(target.value));
    this.find("details").ontoggle = () => this.drawCodes();
  }

  set state(name) {
    this.element.dataset.state = name;
    this.element.setAttribute("aria-busy", name === "running"); // read out once it is whole, not word by word
  }

  set note(words) {
    this.find(".note").textContent = words;
  }

  /** Says how fast a reply came, and what ended it; an error first. */
  showFacts() {
    const { facts, samples } = this;
    const words = facts.error ? [facts.error] : [];
    if (facts.firstSound != null) words.push(`first sound ${facts.firstSound.toFixed(2)} s`);
    if (samples && facts.seconds) {
      facts.realTimeFactor = (facts.seconds * RATE) / samples;
      words.push(`real-time factor ${facts.realTimeFactor.toFixed(2)}`);
    }
    if (facts.gaps) words.push(facts.gaps === 1 ? "1 gap" : `${facts.gaps} gaps`);
    if (facts.server) words.push(`prompt of ${facts.server.prompt_rows} rows, ${facts.server.cached_rows} cached`);
    if (facts.status === "completed" && !samples && !this.text.trim()) words.unshift("an empty reply");
    if (facts.status === "incomplete") words.push("cut at the limit of rows");
    if (facts.status === "cancelled" || facts.heardSeconds != null) words.push("stopped");
    this.note = words.join(" · ");
  }

  addText(delta) {
    this.find(".text").append(this.text.trim() ? delta : delta.trimStart()); // no empty lines on top
    this.text += delta;
  }

  addSound(pcm) {
    this.chunks.push(pcm);
    for (let n = 0; n < pcm.length; n++) {
      const place = Math.floor((this.samples + n) / PEAK_SAMPLES);
      this.peaks[place] = Math.max(this.peaks[place] ?? 0, Math.abs(pcm[n]) / 32768);
    }
    this.samples += pcm.length;
    this.find(".sound").hidden = false;
    this.find(".length").textContent = `${(this.samples / RATE).toFixed(1)} s`;
    this.draw();
  }

  addCodes(codes) {
    this.codes.push(...codes);
    this.find("details").hidden = false;
    this.find("summary").textContent = `${this.codes.length} codes`;
    this.drawCodes();
  }

  /** All sound is there: it can be played and saved. */
  finish(name) {
    if (!this.samples) return;
    this.pcm = joined(this.chunks);
    this.url = URL.createObjectURL(new Blob([wavOf(this.pcm)], { type: "audio/wav" }));
    Object.assign(this.find(".save"), { hidden: false, href: this.url, download: name });
    this.find(".play").disabled = this.find(".wave input").disabled = false;
    this.find(".wave input").max = this.samples / RATE;
  }

  remove() {
    this.pause();
    if (this.url) URL.revokeObjectURL(this.url);
    this.element.remove();
  }

  // --- playback -----------------------------------------------------------------------------------------------

  get audio() {
    if (!this.player) {
      this.player = new Audio(this.url);
      this.player.onplay = this.player.onpause = () => this.showPlaying();
      this.player.onended = () => this.seek(0);
    }
    return this.player;
  }

  toggle() {
    if (this.player && !this.player.paused) return this.pause();
    pausePlayback();
    live.silence();
    playing = this;
    return this.audio.play();
  }

  pause() {
    this.player?.pause();
  }

  seek(seconds) {
    this.audio.currentTime = seconds;
    this.move(seconds * RATE);
  }

  showPlaying() {
    const plays = !this.player.paused;
    this.find(".play use").setAttribute("href", plays ? "#i-pause" : "#i-play");
    this.find(".play").setAttribute("aria-label", plays ? "Pause" : "Play");
    const follow = () => {
      if (this.player.paused) return;
      this.move(this.player.currentTime * RATE);
      requestAnimationFrame(follow);
    };
    follow();
  }

  /** How far it was heard, in samples. */
  move(samples) {
    this.heard = samples;
    this.find(".wave input").value = samples / RATE;
    this.draw();
  }

  // --- pictures -----------------------------------------------------------------------------------------------

  draw() {
    if (this.isDrawing) return;
    this.isDrawing = true;
    requestAnimationFrame(() => {
      this.isDrawing = false;
      this.drawWave();
    });
  }

  drawWave() {
    const canvas = this.find(".wave canvas");
    const { width, height } = canvas.getBoundingClientRect();
    const scale = devicePixelRatio;
    Object.assign(canvas, { width: width * scale, height: height * scale });
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.fillStyle = getComputedStyle(canvas).color;
    const bars = Math.floor(width / 4);
    const shown = Math.max(this.peaks.length, 100); // 2 s at least, so that a wave grows from the left
    const loudest = Math.max(0.05, ...this.peaks);
    for (let bar = 0; bar < bars; bar++) {
      const from = Math.floor((bar * shown) / bars);
      const to = Math.max(from + 1, Math.floor(((bar + 1) * shown) / bars));
      if (from >= this.peaks.length) break;
      const peak = Math.max(...this.peaks.slice(from, to)) / loudest;
      const tall = Math.max(2, peak * (height - 4));
      pen.globalAlpha = from * PEAK_SAMPLES < this.heard ? 1 : 0.4;
      pen.fillRect(4 * bar, (height - tall) / 2, 2.5, tall);
    }
  }

  drawCodes() {
    if (!this.find("details").open) return;
    const canvas = this.find("details canvas");
    canvas.width = CELL * Math.min(CODES_A_LINE, this.codes.length);
    canvas.height = CELL * Math.ceil(this.codes.length / CODES_A_LINE);
    const pen = canvas.getContext("2d");
    this.codes.forEach((code, n) => {
      // Neighbouring ids have nothing in common: hues a golden angle apart.
      pen.fillStyle = `hsl(${(code * 137.508) % 360} 60% ${35 + (30 * code) / this.codebook}%)`;
      pen.fillRect(CELL * (n % CODES_A_LINE), CELL * Math.floor(n / CODES_A_LINE), CELL - 1, CELL - 1);
    });
    canvas.onpointermove = ({ offsetX, offsetY }) => {
      const size = canvas.getBoundingClientRect().width / Math.min(CODES_A_LINE, this.codes.length);
      const n = CODES_A_LINE * Math.floor(offsetY / size) + Math.floor(offsetX / size);
      if (n < this.codes.length) canvas.title = `${(0.08 * n).toFixed(2)} s: code ${this.codes[n]}`;
    };
  }
}
