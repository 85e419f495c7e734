// Copies the id before a button. With http and another host than localhost there is no navigator.clipboard:
// the id is selected, and copied in the old way, which a browser may refuse.
"use strict";

const COPIED_MS = 4000;
let copiedTimer = null; // until the message disappears

function showCopied(message) {
  clearTimeout(copiedTimer);
  byId("copied").textContent = message;
  copiedTimer = setTimeout(() => byId("copied").replaceChildren(), COPIED_MS);
}

function select(id) {
  const range = new Range();
  range.selectNode(id);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

async function copy(id) {
  try {
    await navigator.clipboard.writeText(id.textContent);
  } catch {
    select(id);
    if (!document.execCommand("copy")) return showCopied("Selected: copy it with Ctrl+C or ⌘C.");
    getSelection().removeAllRanges();
  }
  showCopied("Copied.");
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button.copy");
  if (button) copy(button.previousSibling);
});
