// The student that this page holds: it runs in a worker made from the page's own text, and nothing leaves the page.
"use strict";

const student = {
  asked: 0,
  waiting: new Map(),
  begin() {
    const source = document.getElementById("student").textContent;
    const text = atob(document.getElementById("weights").textContent);
    const weights = Uint8Array.from(text, character => character.charCodeAt(0)).buffer;
    this.worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    this.worker.onmessage = ({ data }) => {
      if (data.ready) return;
      const { told, done } = this.waiting.get(data.id);
      if (!data.done) return told(data);
      this.waiting.delete(data.id);
      done(data);
    };
    this.worker.onerror = ({ message }) => {
      for (const { failed } of this.waiting.values()) failed(new Error(message));
      this.waiting.clear();
    };
    this.worker.postMessage({ facts: JSON.parse(document.getElementById("model").textContent), weights }, [weights]);
  },
  // One prompt; `told` is called with each token. Returns what was read and written, and the seconds.
  ask(request, told = () => {}) {
    if (!this.worker) this.begin();
    const id = ++this.asked;
    return new Promise((done, failed) => {
      this.waiting.set(id, { told, done, failed });
      this.worker.postMessage({ id, ...request });
    });
  },
};

async function write(intent, command, { n, temperature, stale }, show) {
  let tokens = 0, seconds = 0;
  for (let k = 0; k < n && !stale(); k++) {
    const decoder = new TextDecoder(), seed = crypto.getRandomValues(new Uint32Array(1))[0];
    let text = "";
    const told = ({ piece }) => { show(k, (text += decoder.decode(piece, { stream: true }))); };
    const written = await student.ask({ intent, command, temperature, minP: page.minP, seed }, told);
    tokens += written.written.length;
    seconds += written.seconds;
    show(k, text, { length: countWords(text) });
  }
  return `${Math.round(tokens / seconds)} tokens a second, in this page`;
}
