/** The sound that a session was sent, as long as a turn may be: to show turns that the server finds in it. */

import { RATE, joined } from "./sound.js";

export class Heard {
  constructor(seconds) {
    this.samples = 0;
    this.most = seconds * RATE;
    this.chunks = [];
  }

  add(pcm) {
    this.chunks.push({ at: this.samples, pcm, time: performance.now() });
    this.samples += pcm.length;
    while (this.chunks[0].at < this.samples - this.most) this.chunks.shift();
  }

  /** Sound between two moments of the session, and when the last of it came. */
  between(startMs, endMs) {
    const [from, to] = [(startMs * RATE) / 1000, (endMs * RATE) / 1000];
    const chunks = this.chunks.filter(({ at, pcm }) => at + pcm.length > from && at < to);
    return { pcm: joined(chunks.map(({ pcm }) => pcm)), time: chunks.at(-1)?.time };
  }
}
