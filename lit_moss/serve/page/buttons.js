/** Buttons and keys -> what the page does. */

import { wakeSound } from "./sound.js";
import { fail, guard } from "./view.js";

const HOLD_MS = 400; // a press that is shorter is a click: the next click ends the turn

const $ = (id) => document.getElementById(id);

/** Opens or closes the settings, which a wide screen always shows. */
export function openSettings(isOpen) {
  $("settings").classList.toggle("open", isOpen);
  $("open-settings").setAttribute("aria-expanded", isOpen);
}

/** Whether a key is for the input method, to choose what is written. Safari has ended the composition by then. */
function isOfInputMethod(event) {
  return event.isComposing || event.keyCode === 229;
}

export function connectButtons(actions) {
  for (const type of ["click", "keydown"]) document.addEventListener(type, wakeSound, { capture: true });
  connectMicrophone(actions);
  connectFiles(actions);
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    guard(actions.sendText);
  };
  if (!CSS.supports("field-sizing", "content")) {
    $("text").oninput = ({ target }) => {
      target.style.height = "auto";
      target.style.height = `${target.scrollHeight}px`;
    };
  }
  $("text").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || isOfInputMethod(event)) return;
    event.preventDefault();
    guard(actions.sendText);
  };
  // No `onkeydown`: one that returns false, such as `key === "Escape" && …`, cancels the key.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !isOfInputMethod(event)) guard(actions.stop);
  });
  $("stop").onclick = () => guard(actions.stop);
  $("clear").onclick = () => confirm("Begin a new conversation? This one is lost.") && guard(actions.clear);
  $("save").onclick = actions.save;
  $("settings").onsubmit = (event) => event.preventDefault();
  $("open-settings").onclick = () => openSettings(!$("settings").classList.contains("open"));
  // Without `guard`: a click that leaves a field changes it first, and its own error must stay.
  document.addEventListener("change", () => actions.update().catch(fail));
  matchMedia("(prefers-color-scheme: dark)").onchange = actions.redraw;
}

function connectMicrophone({ isListening, isHandsFree, listen, endTurn }) {
  let pressed = 0;
  let opening = null;
  const begin = () => (opening = guard(listen));
  const end = async () => {
    await opening; // the microphone may still be asked for
    await guard(endTurn);
  };
  const toggle = () => (isListening() ? end() : begin());
  $("mic").onpointerdown = (event) => {
    if (event.button) return;
    $("mic").setPointerCapture(event.pointerId);
    pressed = isListening() ? 0 : performance.now();
    toggle();
  };
  $("mic").onpointerup = () => {
    if (pressed && performance.now() - pressed > HOLD_MS && !isHandsFree()) end();
  };
  $("mic").onpointercancel = $("mic").onpointerup;
  $("mic").onclick = (event) => event.detail || toggle(); // clicks of the keyboard have no count
}

function connectFiles({ sendFile }) {
  const send = (file) => file && !$("file").disabled && guard(() => sendFile(file));
  $("file").onchange = ({ target }) => {
    const [file] = target.files;
    target.value = "";
    send(file);
  };
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    send(event.dataTransfer.files[0]);
  };
}
