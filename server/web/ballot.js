// One vote that may change: what is wanted is shown at once, and sent until the server has it.

import { vote } from "./api.js";

export class Ballot {
  /**
   * @param {any} value what the server has; null for nothing
   * @param {(value: any) => object} body the vote as it is sent
   * @param {object} target names the vote that is taken back
   * @param {(value: any, error: Error|null) => void} changed
   */
  constructor(value, body, target, changed) {
    this.value = value;
    this.#kept = value;
    this.#body = body;
    this.#target = target;
    this.#changed = changed;
  }

  #kept;
  #body;
  #target;
  #changed;
  #sending = false;

  /** Votes so; null takes the vote back. What is clicked meanwhile waits, and only the last of it is sent. */
  async cast(value) {
    this.value = value;
    this.#changed(value, null);
    if (this.#sending) return;
    this.#sending = true;
    while (!same(this.value, this.#kept)) {
      const aim = this.value;
      try {
        await this.#send(aim);
        this.#kept = aim;
      } catch (error) {
        this.value = this.#kept;
        this.#changed(this.value, error);
      }
    }
    this.#sending = false;
  }

  async #send(aim) {
    if (aim !== null) {
      await vote("POST", this.#body(aim));
      return;
    }
    try {
      await vote("DELETE", this.#target);
    } catch (error) {
      if (error.status !== 404) throw error; // taken back already, in another window
    }
  }
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
