// The student behind this page's server.
"use strict";

async function write(intent, command, { n, temperature }, show) {
  const key = document.getElementById("key"), began = performance.now();
  const headers = { "Content-Type": "application/json", ...(key.value && { Authorization: `Bearer ${key.value}` }) };
  const body = JSON.stringify({ intent, command, n, temperature, rewards: page.measured });
  const reply = await fetch("v1/prompts", { method: "POST", headers, body });
  const said = await reply.json();
  key.parentElement.hidden &&= reply.status !== 401;
  if (!reply.ok) throw new Error(said.error.message);
  said.prompts.forEach(({ prompt, achieved }, k) => show(k, prompt, achieved, said.command));
  const ms = Math.round(performance.now() - began), taken = ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`;
  return `${taken}${said.note ? `. ${said.note}` : ""}`;
}
