/**
 * Sound on the audio thread, between the model's 24 kHz and the rate of the sound card.
 *
 *   player       messages {start | push samples | end | flush}  ->  sound, {began | played | ended | flushed}
 *   microphone   sound, messages {record | end}                 ->  {pcm, Int16Array of 40 ms | ended}
 */

const MODEL_RATE = 24000;
const ZERO_CROSSINGS = 16; // of the sinc, on each side
const TABLE_STEPS = 512; // table entries between two zero crossings
const PIECE = 480; // samples that are resampled at once: 20 ms, a small part of a render quantum's time
const CHUNK = 960; // samples of a message of the microphone: 40 ms
const JITTER_SEC = 0.08; // sound that is waited for before the first sample is played
const MOST_JITTER_SEC = 1; // after gaps
const AUDIBLE = 0.001; // -60 dB of full scale

/** sinc under a Hann window, at multiples of 1 / TABLE_STEPS zero crossings. */
const KERNEL = Float32Array.from({ length: ZERO_CROSSINGS * TABLE_STEPS + 2 }, (_, n) => {
  const x = n / TABLE_STEPS;
  if (x >= ZERO_CROSSINGS) return 0;
  const window = 0.5 + 0.5 * Math.cos((Math.PI * x) / ZERO_CROSSINGS);
  return x === 0 ? 1 : (window * Math.sin(Math.PI * x)) / (Math.PI * x);
});

/** Windowed-sinc resampling that keeps its state between chunks, so that they join without a seam. */
class Resampler {
  constructor(from, to) {
    this.step = from / to;
    this.cutoff = 0.945 * Math.min(1, to / from); // below both Nyquist frequencies, with room for the filter's slope
    this.reach = Math.ceil(ZERO_CROSSINGS / this.cutoff);
    this.reset();
  }

  reset() {
    this.held = new Float32Array(this.reach); // silence before the first sample
    this.place = this.reach; // of the next output sample, in `held`
  }

  /** Next samples -> what can be computed of the output. */
  push(samples) {
    const input = new Float32Array(this.held.length + samples.length);
    input.set(this.held);
    input.set(samples, this.held.length);
    const count = Math.max(0, Math.ceil((input.length - this.reach - this.place) / this.step));
    const output = new Float32Array(count);
    for (let n = 0; n < count; n++) output[n] = this.at(input, this.place + n * this.step);
    this.place += count * this.step;
    const first = Math.min(Math.max(0, Math.floor(this.place) - this.reach), input.length);
    this.held = input.slice(first);
    this.place -= first;
    return output;
  }

  /** The rest, once nothing follows. */
  flush() {
    return this.push(new Float32Array(this.reach));
  }

  at(input, place) {
    const first = Math.max(0, Math.ceil(place - this.reach));
    const last = Math.min(input.length - 1, Math.floor(place + this.reach));
    let sum = 0;
    for (let n = first; n <= last; n++) {
      const x = Math.min(Math.abs(n - place) * this.cutoff, ZERO_CROSSINGS) * TABLE_STEPS;
      const below = x | 0;
      sum += input[n] * (KERNEL[below] + (x - below) * (KERNEL[below + 1] - KERNEL[below]));
    }
    return sum * this.cutoff;
  }
}

/** First in, first out; grows when it is full. */
class Ring {
  constructor(size) {
    this.data = new Float32Array(size);
    this.clear();
  }

  clear() {
    this.start = this.length = 0;
  }

  push(samples) {
    if (this.length + samples.length > this.data.length) {
      const larger = new Float32Array(2 * (this.length + samples.length));
      const held = this.length;
      larger.set(this.take(held));
      [this.data, this.start, this.length] = [larger, 0, held];
    }
    const end = (this.start + this.length) % this.data.length;
    const fits = Math.min(samples.length, this.data.length - end);
    this.data.set(samples.subarray(0, fits), end);
    this.data.set(samples.subarray(fits), 0);
    this.length += samples.length;
  }

  take(most) {
    const count = Math.min(most, this.length);
    const samples = new Float32Array(count);
    const fits = Math.min(count, this.data.length - this.start);
    samples.set(this.data.subarray(this.start, this.start + fits));
    samples.set(this.data.subarray(0, count - fits), fits);
    this.start = (this.start + count) % this.data.length;
    this.length -= count;
    return samples;
  }
}

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(MODEL_RATE, sampleRate);
    this.coming = new Ring(10 * MODEL_RATE); // at the model's rate
    this.ready = new Ring(sampleRate); // at the sound card's
    this.start(0);
    this.port.onmessage = ({ data }) => this.receive(data);
  }

  receive(message) {
    if (message.type === "start") {
      if (this.fades) this.post("flushed", { flush: this.fades }); // what waits for it would wait for good
      this.start(message.reply);
    } else if (message.type === "push") this.coming.push(message.samples);
    else if (message.type === "end") this.isWhole = true;
    else if (message.type === "flush") this.fades = message.number;
  }

  start(reply) {
    this.resampler.reset();
    this.coming.clear();
    this.ready.clear();
    Object.assign(this, { reply, played: 0, reported: 0, gaps: 0, wanted: JITTER_SEC });
    Object.assign(this, { plays: false, isWhole: false, isFlushed: false, fades: 0, began: false, ended: false });
  }

  post(type, more = {}) {
    const samples = Math.round((this.played * MODEL_RATE) / sampleRate);
    this.port.postMessage({ type, reply: this.reply, samples, gaps: this.gaps, ...more });
  }

  /** Samples at the sound card's rate, fewer than `count` if there are no more. */
  take(count) {
    while (this.ready.length < count && this.coming.length) {
      this.ready.push(this.resampler.push(this.coming.take(PIECE)));
    }
    if (this.ready.length < count && this.isWhole && !this.isFlushed) {
      this.isFlushed = true;
      this.ready.push(this.resampler.flush());
    }
    return this.ready.take(count);
  }

  process(_, [[output]]) {
    if (!this.plays && !this.ended) {
      const held = this.coming.length / MODEL_RATE + this.ready.length / sampleRate;
      this.plays = held >= this.wanted || this.isWhole;
    }
    if (this.plays) this.play(output);
    if (this.fades) {
      output.forEach((value, n) => (output[n] = value * (1 - n / output.length)));
      this.post("flushed", { flush: this.fades });
      this.start(this.reply);
      this.ended = true;
    }
    return true;
  }

  play(output) {
    const samples = this.take(output.length);
    output.set(samples);
    if (!this.began) {
      const first = samples.findIndex((value) => Math.abs(value) > AUDIBLE);
      this.began = first >= 0;
      if (this.began) this.post("began", { time: currentTime + first / sampleRate });
    }
    this.played += samples.length;
    if (this.played - this.reported > sampleRate / 20) {
      this.reported = this.played;
      this.post("played");
    }
    if (samples.length === output.length) return;
    this.plays = false;
    if (this.isWhole) {
      this.ended = true;
      this.post("ended");
    } else {
      this.gaps += 1;
      this.wanted = Math.min(2 * this.wanted, MOST_JITTER_SEC);
    }
  }
}

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, MODEL_RATE);
    this.held = new Ring(MODEL_RATE);
    this.records = false;
    this.port.onmessage = ({ data }) => {
      if (data.type === "record") this.records = true;
      else if (data.type === "end") this.end();
    };
  }

  process([channels]) {
    if (this.records && channels.length) {
      const mono = channels[0].map((_, n) => channels.reduce((sum, one) => sum + one[n], 0) / channels.length);
      this.held.push(this.resampler.push(mono));
      while (this.held.length >= CHUNK) this.post(CHUNK);
    }
    return true;
  }

  end() {
    if (this.records) {
      this.held.push(this.resampler.flush());
      while (this.held.length) this.post(CHUNK);
    }
    this.records = false;
    this.port.postMessage({ type: "ended" });
  }

  post(count) {
    const pcm = Int16Array.from(this.held.take(count), (value) =>
      Math.max(-32768, Math.min(32767, Math.round(32768 * value))),
    );
    this.port.postMessage({ type: "pcm", pcm }, [pcm.buffer]);
  }
}

registerProcessor("player", Player);
registerProcessor("microphone", Microphone);
