// The board of what runs: lines come over a websocket, and each is changed in place, so that a
// button does not move away under the pointer.
"use strict";

(() => {
  const board = document.getElementById("board");
  const body = board.querySelector("tbody");
  const nothing = board.querySelector(".nothing");
  const state = board.querySelector(".board-state");
  const says = state.querySelector(".says");
  const mayKill = board.dataset.mayKill === "1";
  const lines = new Map(); // request id -> { tr, row, at }
  const RETRY_MS = 2000;

  function cell(tr, className) {
    const td = document.createElement("td");
    td.className = className || "";
    tr.append(td);
    return td;
  }

  function twoLines(td, first, second) {
    const text = `${first}\n${second}`;
    if (td.dataset.text === text) return;
    td.dataset.text = text;
    const small = document.createElement("small");
    small.textContent = second;
    td.replaceChildren(document.createTextNode(first), small);
  }

  function link(td, href, label, className, name) {
    const a = document.createElement("a");
    a.href = href;
    a.textContent = label;
    a.className = className;
    if (name) a.setAttribute("aria-label", name);
    td.append(a);
  }

  function newLine(row) {
    const tr = document.createElement("tr");
    tr.dataset.request = row.request_id;
    const line = { tr, cells: {} };
    for (const [name, className] of [
      ["key", "wide"], ["where", "wide"], ["engine"], ["phase"],
      ["time", "number"], ["tokens", "number"], ["actions", "number"], ["request"],
    ]) line.cells[name] = cell(tr, className);
    link(line.cells.request, row.page, row.request_id.slice(0, 8), "text-primary-600 dark:text-primary-500", `Request ${row.request_id}`);
    if (mayKill) link(cell(tr), row.kill, "Kill", "kill", `End request ${row.request_id}`);
    return line;
  }

  function fill(line, row) {
    const { cells } = line;
    const mode = row.agent_mode ? `agent${row.level ? `, ${row.level}` : ""}` : "chat";
    twoLines(cells.key, row.key_name || "no key", row.key_owner || "");
    twoLines(cells.where, row.root_alias || "-", row.agent_mode ? row.cwd : "");
    twoLines(cells.engine, row.engine || "-", row.stream ? `${mode}, stream` : mode);
    twoLines(cells.phase, row.phase, row.is_here ? "" : "in another process");
    const tokens = [row.input_tokens, row.output_tokens].map(number);
    cells.tokens.textContent = tokens.join(" / ");
    cells.actions.textContent = row.agent_mode ? number(row.actions) : "-";
  }

  function number(value) {
    return value === null || value === undefined ? "-" : value.toLocaleString("en");
  }

  function duration(seconds) {
    const whole = Math.max(0, Math.floor(seconds));
    const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
    return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
  }

  function tick() {
    const now = performance.now();
    for (const line of lines.values()) {
      line.cells.time.textContent = duration(line.seconds + (now - line.at) / 1000);
    }
  }

  function show(message) {
    const seen = new Set();
    for (const row of message.rows) {
      seen.add(row.request_id);
      let line = lines.get(row.request_id);
      if (!line) {
        line = newLine(row);
        lines.set(row.request_id, line);
        body.append(line.tr);
      }
      line.seconds = row.seconds;
      line.at = performance.now();
      fill(line, row);
    }
    for (const [id, line] of lines) {
      if (!seen.has(id)) {
        line.tr.remove();
        lines.delete(id);
      }
    }
    nothing.hidden = lines.size > 0;
    tick();
  }

  function say(text, className) {
    if (says.textContent !== text) says.textContent = text;
    state.className = `board-state ${className}`;
  }

  function connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}${board.dataset.socket}`);
    socket.addEventListener("message", (event) => {
      const message = JSON.parse(event.data);
      show(message);
      const count = lines.size;
      const what = count === 1 ? "request runs" : "requests run";
      say(message.is_cut ? `Live: more than can be shown; here are ${count}` : `Live: ${count} ${what}`, "is-live");
    });
    socket.addEventListener("close", (event) => {
      say(event.code === 4403 ? "You may no longer see this." : "Not live: connecting again…", "is-off");
      if (event.code !== 4403) setTimeout(connect, RETRY_MS);
    });
  }

  show(JSON.parse(document.getElementById("board-first").textContent));
  connect();
  setInterval(tick, 1000);
})();
