/** The history and the lines below it. */

const history = document.getElementById("history");

/** A line of a conversation that nobody said. */
export function addDivider(words) {
  const line = document.createElement("li");
  Object.assign(line, { className: "divider", textContent: words });
  addToHistory(line);
}

export function addToHistory(element) {
  following(() => history.append(element));
}

/** Keeps the end of the conversation in sight where it was. */
export function following(change) {
  const view = document.querySelector("main");
  const follows = view.scrollHeight - view.scrollTop - view.clientHeight < 80;
  change();
  if (follows) view.scrollTop = view.scrollHeight;
}

/** A line about what goes on. */
export function say(words) {
  document.getElementById("status").textContent = words;
}

/** An error in words, null for none. */
export function fail(error) {
  document.getElementById("error").textContent = error?.message ?? "";
  if (error) say("");
}

/** Runs what the user asked for; a failure is shown in words. */
export async function guard(action) {
  fail(null);
  try {
    await action();
  } catch (error) {
    fail(error);
  }
}

/** Shows one button in the place of another; the keyboard's focus stays in that place. */
export function swap(hidden, shown) {
  const hadFocus = document.activeElement === hidden;
  shown.hidden = false;
  if (hadFocus) shown.focus();
  hidden.hidden = true;
}

/** Puts words into the box of the message. */
export function write(words) {
  const box = document.getElementById("text");
  box.value = words;
  box.dispatchEvent(new Event("input"));
}
