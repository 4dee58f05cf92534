'use strict';
// The buttons are forms and work without this. With it they answer in place, and the states are those of the last second.

const servers = document.getElementById('servers');

const put = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};
const say = (id, text) => put(document.getElementById(id), text);
const parts = (row, name) => row.querySelectorAll(`[data-part="${name}"]`);

/** The row of a server; for a new one a copy of the first. */
function rowOf(name) {
  const known = Array.from(servers.children).find((row) => row.dataset.server === name);
  if (known) return known;
  const row = servers.firstElementChild.cloneNode(true);
  row.dataset.server = name;
  for (const node of parts(row, 'name')) put(node, name);
  for (const field of row.querySelectorAll('input[name="server"]')) field.value = name;
  servers.append(row);
  return row;
}

function show(server) {
  const row = rowOf(server.name);
  const [state] = parts(row, 'state');
  state.dataset.state = server.state;
  put(state, server.says);
  put(parts(row, 'pid')[0], server.pid === null ? '–' : String(server.pid));
}

let isLost = false;

async function refresh() {
  try {
    const reply = await fetch('/state');
    if (!reply.ok) throw new Error(reply.statusText);
    (await reply.json()).servers.forEach(show);
    if (isLost) say('problem', '');
    isLost = false;
  } catch {
    isLost = true;
    say('problem', 'The demo does not answer: it has ended.');
  }
}

async function send(form) {
  const reply = await fetch(form.action, { method: 'POST', body: new URLSearchParams(new FormData(form)) });
  const said = (await reply.text()).trim();
  say('said', reply.ok ? said : '');
  say('problem', reply.ok ? '' : said);
}

document.addEventListener('submit', (event) => {
  event.preventDefault();
  // What went wrong is seen by the next look.
  send(event.target).catch(() => {}).then(refresh);
});

async function watch() {
  await refresh();
  setTimeout(watch, 1_000);
}

watch();
