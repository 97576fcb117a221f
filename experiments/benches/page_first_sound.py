"""Measures the time from a question to the first sound in a browser: our page and a minimal gradio page.

    python -m experiments.benches.page_first_sound --model DIR [--runs 10]

Both pages send the same typed question to the same engine in the same process, taking turns, in one headless
Chromium. Times are measured in the browser from the click on the button: on our page until the sound card
takes the first sample above -60 dB, on gradio's until the time of its <audio> element has first advanced.
Needs ffmpeg on PATH for gradio (`pip install imageio-ffmpeg` provides one) and a Chromium that plays AAC.
"""

import argparse
import io
import shutil
import statistics
import threading
import time
import wave
from collections.abc import Iterator
from typing import Any

from lit_moss.audio import rates
from lit_moss.serve.app import Context, create_app
from lit_moss.serve.engine import Engine
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import AudioDelta, ReplyOptions

QUESTION = "What is the capital of France?"
# Sets window.firstSound to the seconds from the click until an <audio> element first advances.
WATCH = """() => {
  const began = performance.now();
  window.firstSound = null;
  document.querySelector('#ask').click();
  const look = () => {
    if ([...document.querySelectorAll('audio')].some((audio) => !audio.paused && audio.currentTime > 0))
      window.firstSound = (performance.now() - began) / 1000;
    else setTimeout(look, 5);
  };
  look();
}"""


def gradio_page(engine: Engine, max_new_tokens: int) -> Any:
    """A question, a button, and the reply as streamed audio, one complete WAV file per chunk."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    def answer(question: str) -> Iterator[bytes]:
        session = engine.open_session()
        try:
            session.conversation.add(session.conversation.text_message("user", question))
            for event in session.start_reply(ReplyOptions(max_new_tokens=max_new_tokens)):
                if isinstance(event, AudioDelta):
                    file = io.BytesIO()
                    with wave.open(file, "wb") as writer:
                        writer.setnchannels(1)
                        writer.setsampwidth(2)
                        writer.setframerate(rates.DECODER_RATE_HZ)
                        samples = (event.samples_T.clamp(-1, 1) * 32767).short()
                        writer.writeframes(samples.numpy().tobytes())
                    yield file.getvalue()
        finally:
            session.close()

    with gr.Blocks(analytics_enabled=False) as blocks:
        question = gr.Textbox(QUESTION)
        button = gr.Button("Ask", elem_id="ask")
        button.click(answer, question, gr.Audio(streaming=True, autoplay=True))
    return blocks


def start(engine: Engine, max_new_tokens: int) -> str:
    """Serves both pages; returns their address."""
    import gradio as gr  # pyright: ignore[reportMissingImports]
    import uvicorn

    app = create_app(Context(engine))
    app = gr.mount_gradio_app(app, gradio_page(engine, max_new_tokens), path="/gradio")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def measure_page(page: Any, max_new_tokens: int) -> float:
    """Asks one question on our page and waits for the end of its audio."""
    page.fill("[name=max_tokens]", str(max_new_tokens))
    page.fill("#text", QUESTION)
    page.click("#send")
    reply = page.locator("#history > li").last
    page.wait_for_selector("#stop", state="visible")
    page.wait_for_selector("#stop", state="hidden", timeout=120_000)
    seconds = float(reply.get_attribute("data-first-sound"))
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#clear")
    return seconds


def measure_gradio(page: Any, engine: Engine) -> float:
    """Asks one question on gradio's page, reloaded each time, because a used element keeps its position."""
    page.reload()
    page.wait_for_selector("#ask")
    page.wait_for_timeout(1000)
    page.evaluate(WATCH)
    page.wait_for_function("window.firstSound !== null", timeout=120_000, polling=50)
    while engine.sessions:  # wait for the rest of its reply
        page.wait_for_timeout(100)
    return page.evaluate("window.firstSound")


def main() -> None:
    """Prints the times of both pages."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="see `chat`")
    parser.add_argument("--codec", help="see `chat`")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=60)
    args = parser.parse_args()
    engine = Engine(SpeechModel.open(args.model, args.codec, device="cpu"))
    engine.warm_up()
    address = start(engine, args.max_new_tokens)
    times: dict[str, list[float]] = {"page": [], "gradio": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        ours, theirs = browser.new_page(), browser.new_page()
        ours.goto(address)
        theirs.goto(f"{address}/gradio")
        for run in range(args.runs + 1):
            page_sec, gradio_sec = measure_page(ours, args.max_new_tokens), measure_gradio(theirs, engine)
            if run:  # the first is a warm-up
                times["page"].append(page_sec)
                times["gradio"].append(gradio_sec)
        browser.close()
    engine.close()
    first = engine.counts.first_sound_sec
    print(f"engine  first sound: mean {first.total_sec / sum(first.counts):.2f} s")
    for name, seconds in times.items():
        print(f"{name:7} first sound: median {statistics.median(seconds):.2f} s, "
              f"{min(seconds):.2f} to {max(seconds):.2f} s, {len(seconds)} runs")  # fmt: skip


if __name__ == "__main__":
    main()
