/** What the user asked for, one after the other, until the conversation is cleared. */

let queue = Promise.resolve();
let conversation = 0; // number of the one that is shown

/** Another conversation is shown: nothing more is done of what was asked for in the one before. */
export function beginConversation() {
  conversation += 1;
}

/**
 * Runs an action after all that was asked for before. It gets `check`, to be called after each wait: it ends the
 * action once its conversation was cleared, whose failures are then nobody's.
 */
export function inTurn(action) {
  const [before, own] = [queue, conversation];
  const check = () => {
    if (own !== conversation) throw new Error("The conversation was cleared.");
  };
  const run = async () => {
    await before;
    try {
      check();
      await action(check);
    } catch (error) {
      if (own === conversation) throw error;
    }
  };
  const result = run();
  queue = result.catch(() => {});
  return result;
}
