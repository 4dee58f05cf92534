'use strict';
// The dashboard: one snapshot a second from /api/v1/stream, shown in place. Nodes are made when a pool, a server or a
// counter first appears and are removed when it has gone; what is kept of the past is in rings of fixed size, so a page
// that is left open for weeks grows by nothing. Names come from a configuration and are only ever set as text.

/** How far back the charts go, in seconds and in snapshots. */
const SPAN = 300;
/** Shares and rates are taken over so many snapshots. */
const WINDOW = 10;
/** A stream that says nothing for so long is taken for broken, in milliseconds. */
const SILENCE = 5_000;
const LONGEST_PAUSE = 30;
const MOST_EVENTS = 20;
/** Heavy sessions that are shown of a pool. */
const MOST_HEAVY = 5;
/** Counters of what happens now and then: their last minute. */
const MINUTE = 60;
const CHART = { width: 300, height: 80 };
const VERDICTS = ['kept', 'waited', 'new', 'moved', 'refused', 'none'];

const byId = (id) => document.getElementById(id);

// ---- Text

const numbers = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const large = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const count = (value) => (Math.abs(value) < 100_000 ? numbers : large).format(value);
const percent = (share) => (Number.isFinite(share) ? `${numbers.format(100 * share)} %` : '–');
const ratio = (value) => (Number.isFinite(value) ? value.toFixed(2) : '–');

function milliseconds(value) {
  if (!Number.isFinite(value)) return '–';
  if (value >= 1_000) return `${numbers.format(value / 1_000)} s`;
  if (value >= 100) return `${Math.round(value)} ms`;
  return value >= 0.1 || value === 0 ? `${numbers.format(value)} ms` : '<0.1 ms';
}

function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3_600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3_600)} h ${Math.floor((whole % 3_600) / 60)} min`;
}

function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  for (; value >= 1_024 && at < units.length - 1; at += 1) value /= 1_024;
  return `${numbers.format(value)} ${units[at]}`;
}

// ---- Nodes

/** Sets a node's text, where it is another; its text node stays. */
function put(node, text) {
  const first = node.firstChild;
  if (!first) node.textContent = text;
  else if (first.data !== text) first.data = text;
}

function set(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Whether a node is seen. */
function reveal(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

/** A copy of a template, with its parts by name. */
function copy(template) {
  const root = byId(template).content.firstElementChild.cloneNode(true);
  const parts = { root };
  for (const node of root.querySelectorAll('[data-part]')) parts[node.dataset.part] = node;
  return parts;
}

/** Keeps one view per item of a list, by key and in its order. */
class Views {
  constructor(parent, make) {
    this.parent = parent;
    this.make = make;
    this.views = new Map();
  }

  show(items, keyOf, update) {
    // First what has gone: what is moved in the page loses the keyboard's focus.
    const wanted = new Set(items.map(keyOf));
    for (const [key, view] of this.views) {
      if (wanted.has(key)) continue;
      view.root.remove();
      this.views.delete(key);
    }
    const keys = new Set();
    let before = null;
    for (const item of items) {
      const key = keyOf(item);
      if (keys.has(key)) continue;
      keys.add(key);
      let view = this.views.get(key);
      if (!view) this.views.set(key, (view = this.make(item)));
      const place = before ? before.nextSibling : this.parent.firstChild;
      if (place !== view.root) this.parent.insertBefore(view.root, place);
      before = view.root;
      update(view, item);
    }
  }
}

// ---- What was

/** The last rows of numbers; the newest has age 0. */
class Ring {
  constructor(columns, length) {
    this.columns = columns;
    this.length = length;
    this.rows = new Float64Array(columns * length);
    this.clear();
  }

  clear() {
    this.next = 0;
    this.count = 0;
  }

  push(values) {
    this.rows.set(values, this.next * this.columns);
    this.next = (this.next + 1) % this.length;
    this.count = Math.min(this.count + 1, this.length);
  }

  at(age, column) {
    return this.rows[((this.next - 1 - age + 2 * this.length) % this.length) * this.columns + column];
  }

  /** The age of the row that a difference to this one is taken from, over `rows` snapshots or fewer. The first column is the time. */
  before(age, rows) {
    let start = Math.min(age + rows, this.count - 1);
    while (start > age && this.at(age, 0) - this.at(start, 0) > 1.5 * rows) start -= 1;
    return start;
  }

  /** How much a counter has grown over that time. */
  growth(age, column, rows) {
    return this.at(age, column) - this.at(this.before(age, rows), column);
  }
}

// Columns of a pool's ring; the buckets of regret follow.
const TIME = 0;
const ACTUAL = 1;
const SHADOW = 2;
const VERDICT = 3;
const REGRETS = VERDICT + VERDICTS.length;
const REGRET_SUM = REGRETS + 1;
const DISAGREEMENTS = REGRETS + 2;
const ANSWERS = REGRETS + 3;
const FAILURES = REGRETS + 4;
const BUCKETS = REGRETS + 5;
/** As many as histograms of durations have. */
const MOST_BUCKETS = 16;
const COLUMNS = BUCKETS + MOST_BUCKETS;

const bucketsOf = (pool) => (pool.regret?.buckets ?? []).slice(0, MOST_BUCKETS);

/** A pool's numbers of one snapshot, as a row. */
function rowOf(pool, time) {
  const row = new Float64Array(COLUMNS);
  row[TIME] = time;
  row[ACTUAL] = pool.imbalance?.requests?.max_over_mean ?? NaN;
  row[SHADOW] = pool.shadow_imbalance?.requests?.max_over_mean ?? NaN;
  for (const { verdict, count: counted } of pool.verdicts ?? []) {
    const at = VERDICTS.indexOf(verdict);
    if (at >= 0) row[VERDICT + at] += counted;
  }
  row[REGRETS] = pool.regret?.count ?? 0;
  row[REGRET_SUM] = pool.regret?.sum_s ?? 0;
  row[DISAGREEMENTS] = pool.disagreements ?? 0;
  for (const [code, counted] of Object.entries(pool.codes ?? {})) {
    row[ANSWERS] += counted;
    if (code === '5xx') row[FAILURES] += counted;
  }
  bucketsOf(pool).forEach(([, counted], at) => (row[BUCKETS + at] = counted));
  return row;
}

/** Whether the row goes on from the ring's newest: time moves, and no counter falls (a proxy that was started anew). */
function goesOn(ring, row) {
  if (ring.count === 0) return true;
  for (let column = VERDICT; column < row.length; column += 1) if (row[column] < ring.at(0, column)) return false;
  return row[TIME] > ring.at(0, TIME);
}

/** The bound under which 99 of 100 regrets of the last seconds were, in seconds. */
function regretTail(ring, bounds) {
  const all = ring.growth(0, REGRETS, WINDOW);
  if (!(all > 0)) return NaN;
  const at = bounds.findIndex((_, bucket) => ring.growth(0, BUCKETS + bucket, WINDOW) >= 0.99 * all);
  return at < 0 ? Infinity : bounds[at];
}

// ---- Charts

const x = (ring, age) => (CHART.width * (1 - (ring.at(0, TIME) - ring.at(age, TIME)) / SPAN)).toFixed(1);
const y = (share) => (CHART.height * (1 - Math.min(1, Math.max(0, share)))).toFixed(1);
const isGap = (ring, age) => age + 1 >= ring.count || ring.at(age, TIME) - ring.at(age + 1, TIME) > 3;

/** The oldest row that the chart has a place for. */
function oldest(ring) {
  let age = ring.count - 1;
  while (age > 0 && ring.at(0, TIME) - ring.at(age, TIME) > SPAN) age -= 1;
  return age;
}

/** A line through what is known, broken where nothing is. `valueOf` gives 0 for the bottom and 1 for the top. */
function line(ring, valueOf) {
  let path = '';
  let draws = false;
  for (let age = oldest(ring); age >= 0; age -= 1) {
    const value = valueOf(age);
    const known = Number.isFinite(value);
    if (known) path += `${draws && !isGap(ring, age) ? 'L' : 'M'}${x(ring, age)} ${y(value)}`;
    draws = known;
  }
  return path;
}

/** Shares stacked from the bottom: one closed path for each. */
function areas(ring) {
  const paths = VERDICTS.map(() => '');
  let run = [];
  const close = () => {
    for (let at = 0; run.length > 1 && at < VERDICTS.length; at += 1) {
      const up = run.map((point) => `${point.x} ${y(point.edges[at + 1])}`);
      const back = run.map((point) => `${point.x} ${y(point.edges[at])}`).reverse();
      paths[at] += `M${up.join('L')}L${back.join('L')}Z`;
    }
    run = [];
  };
  for (let age = oldest(ring); age >= 0; age -= 1) {
    const edges = edgesOf(ring, age);
    if (isGap(ring, age) || !edges) close();
    if (edges) run.push({ x: x(ring, age), edges });
  }
  close();
  return paths;
}

/** Where the verdicts' shares of the last seconds begin and end; nothing where there were none. */
function edgesOf(ring, age) {
  const edges = [0];
  for (let at = 0; at < VERDICTS.length; at += 1) edges.push(edges[at] + ring.growth(age, VERDICT + at, WINDOW));
  const all = edges[VERDICTS.length];
  return all > 0 ? edges.map((edge) => edge / all) : null;
}

const meanRegret = (ring, age) => ring.growth(age, REGRET_SUM, WINDOW) / ring.growth(age, REGRETS, WINDOW);

/** The largest known value, and at least `least`. */
function highest(ring, least, ...valuesOf) {
  let top = least;
  for (let age = oldest(ring); age >= 0; age -= 1) {
    for (const valueOf of valuesOf) {
      const value = valueOf(age);
      if (Number.isFinite(value)) top = Math.max(top, value);
    }
  }
  return top;
}

// ---- Counters of what happens now and then

function makeCounter() {
  const view = copy('count-template');
  view.ring = new Ring(2, MINUTE + 1);
  return view;
}

function showCounter(view, what, total, time) {
  const { ring } = view;
  // Counters come with their first event: a snapshot ago there was none.
  if (ring.count === 0 && shownAt !== null && shownAt < time) ring.push([shownAt, 0]);
  if (ring.count > 0 && (total < ring.at(0, 1) || time <= ring.at(0, 0))) ring.clear();
  ring.push([time, total]);
  put(view.what, what);
  put(view.total, count(total));
  put(view.lately, count(ring.growth(0, 1, MINUTE)));
}

// ---- Servers

function makeServer(pool, server) {
  const view = copy('server-template');
  view.root.dataset.server = server.name;
  put(view.name, server.name);
  set(view.deeds, 'aria-label', `What is wanted of ${server.name}`);
  for (const button of view.deeds.querySelectorAll('button')) {
    set(button, 'aria-label', `${button.textContent} ${server.name}`);
    button.addEventListener('click', () => openDeed(button.dataset.deed, pool, view.now));
  }
  return view;
}

/** Who counts for the mean: those that take newcomers; where none does, all. */
function takersOf(servers) {
  const fit = servers.filter((server) => server.newcomers === 'eligible' || server.newcomers === 'full');
  const takers = fit.some((server) => !server.backup) ? fit.filter((server) => !server.backup) : fit;
  return takers.length > 0 ? takers : servers;
}

const perWeight = (load, server) => load / Math.max(1, server.weight);

/** Mean and scale of the bars of one kind: the mean is in the middle, unless somebody has more than twice of it. */
function scaleOf(servers, loadOf) {
  const takers = takersOf(servers);
  const mean = takers.reduce((sum, server) => sum + perWeight(loadOf(server), server), 0) / takers.length;
  const most = servers.reduce((top, server) => Math.max(top, perWeight(loadOf(server), server)), 0);
  return { mean, top: Math.max(2 * mean, most) };
}

function showBar(bar, mark, value, load, scale, server) {
  const own = perWeight(load, server);
  const over = scale.mean > 0 ? own / scale.mean : NaN;
  const place = (part) => `${(scale.top > 0 ? (100 * part) / scale.top : 0).toFixed(1)}%`;
  bar.style.width = place(own);
  bar.classList.toggle('heavy', over > 1.5);
  mark.style.left = scale.top > 0 ? place(scale.mean) : '50%';
  put(value, Number.isFinite(over) ? `${count(load)} · ${over.toFixed(1)}× mean` : count(load));
}

/** Why it is not simply up. */
function reasonsOf(server) {
  const reasons = [];
  if (server.pinned !== 'eligible' && server.pinned !== 'full') reasons.push(`nobody goes there: ${server.pinned}`);
  else if (server.newcomers !== 'eligible') reasons.push(`no newcomers: ${server.newcomers}`);
  if (server.wish !== 'ready') reasons.push(`the operator wants ${server.wish}`);
  const { wish, weight_percent: share } = server.own_word ?? {};
  if (wish && (wish !== 'ready' || share !== 100)) reasons.push(`it says itself: ${wish}, weight ${share} %`);
  if (server.backup) reasons.push('backup');
  if (server.scale_out_s != null) reasons.push(`had its share ${span(server.scale_out_s)} after it joined`);
  return reasons.join('; ');
}

function drainText({ drain, deadline_s: deadline, in_flight: inFlight }) {
  if (!drain) return '';
  if (drain.safe_to_stop) return 'Nothing is left on it: safe to stop.';
  if (drain.remaining === 0) return `No session remains; ${count(inFlight)} in flight.`;
  const parts = [`${count(drain.remaining)} ${drain.remaining === 1 ? 'session remains' : 'sessions remain'}`];
  if (drain.eta_s != null) parts.push(`about ${span(drain.eta_s)} to go`);
  if (drain.half_life_s != null) parts.push(`half of them leave in ${span(drain.half_life_s)}`);
  if (deadline != null) parts.push(deadline > 0 ? `the rest is moved in ${span(deadline)}` : 'the deadline is over');
  return `${parts.join(', ')}.`;
}

function weightText(server) {
  return server.weight === server.configured_weight ? `${server.weight}` : `${server.weight} (file: ${server.configured_weight})`;
}

function showServer(pool, view, server, scales) {
  const before = view.now;
  view.now = server;
  put(view.state, server.state);
  set(view.state, 'data-state', server.state);
  put(view.address, server.address ?? '');
  const why = reasonsOf(server);
  put(view.why, why);
  reveal(view.why, why !== '');
  showBar(view.flightBar, view.flightMean, view.flight, server.in_flight, scales.flight, server);
  showBar(view.rateBar, view.rateMean, view.rate, server.requests_per_second, scales.rate, server);
  put(view.sessions, count(server.sessions));
  put(view.latency, server.latency_ms > 0 ? milliseconds(server.latency_ms) : '–');
  put(view.waiting, count(server.waiting));
  put(view.weight, weightText(server));
  const drain = drainText(server);
  put(view.drain, drain);
  reveal(view.drain, drain !== '');
  if (!before) return;
  const name = `${pool}/${server.name}`;
  if (before.state !== server.state) happened(`${name}: ${before.state}, now ${server.state}`);
  // What a server says of its own weight may change with each probe.
  const saysTheSame = before.own_word?.weight_percent === server.own_word?.weight_percent;
  if (saysTheSame && before.weight !== server.weight) happened(`${name}: weight ${before.weight}, now ${server.weight}`);
  if (server.drain?.safe_to_stop && before.drain && !before.drain.safe_to_stop) happened(`${name}: safe to stop`);
}

// ---- Pools

let poolsMade = 0;

function makePool(pool) {
  const view = copy('pool-template');
  view.root.dataset.pool = pool.name;
  view.name.id = `pool-${(poolsMade += 1)}`;
  set(view.root, 'aria-labelledby', view.name.id);
  put(view.name, pool.name);
  view.ring = new Ring(COLUMNS, SPAN + 1);
  view.rows = new Views(view.servers, (server) => makeServer(pool.name, server));
  view.events = new Views(view.sessionEvents, makeCounter);
  view.table = new Views(view.played, () => copy('played-template'));
  view.heaviest = new Views(view.heavySessions, () => copy('heavy-template'));
  view.shares = VERDICTS.map((verdict) => makeVerdict(view, verdict));
  return view;
}

/** One verdict's area and its place in the legend. */
function makeVerdict(view, verdict) {
  const legend = copy('verdict-template');
  put(legend.verdict, verdict);
  legend.swatch.dataset.verdict = verdict;
  view.verdictLegend.append(legend.root);
  const area = copy('area-template').root.firstElementChild;
  area.dataset.verdict = verdict;
  view.verdictAreas.append(area);
  return { area, share: legend.share };
}

function showPool(view, pool, time) {
  remember(view, pool, time);
  const { servers } = pool;
  put(view.kind, `${pool.mode} · ${pool.balance}${pool.store ? ` · store ${pool.store.name}` : ''}`);
  const rebalances = pool.rebalancing_s != null;
  put(view.note, rebalances ? `rebalancing for ${span(pool.rebalancing_s)}` : '');
  reveal(view.note, rebalances);
  const sum = (of) => servers.reduce((all, server) => all + of(server), 0);
  put(view.flight, count(sum((server) => server.in_flight)));
  put(view.takers, `${takersOf(servers).filter((server) => server.newcomers === 'eligible').length} of ${servers.length}`);
  put(view.sessions, count(sum((server) => server.sessions)));
  reveal(view.sessionsTile, pool.mode !== 'none');
  const flight = scaleOf(servers, (server) => server.in_flight);
  const rate = scaleOf(servers, (server) => server.requests_per_second);
  view.rows.show(servers, (server) => server.name, (row, server) => showServer(pool.name, row, server, { flight, rate }));
  showTwin(view, pool.twin);
  showHeavy(view, pool.twin);
  showSessionEvents(view, pool.session_events ?? {}, time);
  if (!document.hidden) drawPool(view);
}

/** One row more of what was. */
function remember(view, pool, time) {
  view.bounds = bucketsOf(pool).map(([bound]) => bound);
  const row = rowOf(pool, time);
  if (!goesOn(view.ring, row)) view.ring.clear();
  view.ring.push(row);
}

function showSessionEvents(view, events, time) {
  const entries = Object.entries(events);
  view.events.show(entries, ([event]) => event, (row, [event, total]) => showCounter(row, event, total, time));
  reveal(view.eventsDetails, entries.length > 0);
}

/** Why the twin's answer is not to be trusted, as far as it knows. */
const DOUBTS = {
  too_few: () => 'there were too few requests to tell',
  misfit: ({ fit }) => (fit == null ? 'nothing was measured' : `the model has ${ratio(fit)} times the p99 that was measured`),
  no_limit: () => 'no server has been busy enough to show its capacity',
  refused: () => 'some policies would have turned requests away',
  dropped: () => 'some requests were missed',
  left_out: () => 'some requests lasted too long to be modelled',
  thin_sample: () => 'the sample is too small for what servers do at once',
};

/** What could be instead of what is. */
const ALTERNATIVES = [['soft', 'with soft pins'], ['shared', 'with a store'], ['sticky', 'with hard pins']];

/** Whether a policy is the one in force: then the model of it is the same. */
const isInForce = (one, actual) => ['p50_ms', 'p95_ms', 'p99_ms', 'max_over_mean'].every((figure) => one[figure] === actual[figure]);

/** What this very traffic would have met under other policies, in one sentence. */
function twinText(twin) {
  const { actual } = twin.policies;
  const others = ALTERNATIVES.filter(([policy]) => !isInForce(twin.policies[policy], actual));
  const said = others.map(([policy, how], at) => {
    const { p99_ms: p99, kept } = twin.policies[policy];
    const stay = policy === 'soft' && kept != null ? ` (and ${percent(kept)} of requests would stay on their server)` : '';
    return `${how} ${at === 0 ? "this pool's p99 would be " : ''}${milliseconds(p99)}${at === 0 ? ` instead of ${milliseconds(actual.p99_ms)}` : ''}${stay}`;
  });
  const answer = said.length > 0 ? said.join(', ') : `this pool's p99 would be ${milliseconds(actual.p99_ms)} whatever the policy`;
  const why = twin.doubts.map((doubt) => DOUBTS[doubt]?.(twin) ?? doubt).join(', ');
  const trust = why === '' ? '' : `, but not to be trusted, as ${why}`;
  return `${answer[0].toUpperCase()}${answer.slice(1)}; trust: fit ${ratio(twin.fit ?? NaN)}${trust}.`;
}

function showTwin(view, twin) {
  reveal(view.whatIf, twin != null);
  if (twin == null) return;
  put(view.twin, twinText(twin));
  view.twin.classList.toggle('doubted', twin.doubts.length > 0);
  put(view.twinWindow, span(twin.window_s));
  const { actual, soft, shared, sticky } = twin.policies;
  const rows = [['measured', twin.measured ?? {}], ['as it is, modelled', actual], ['hard pins', sticky], ['soft pins', soft], ['a store', shared]];
  view.table.show(rows, ([policy]) => policy, showPlayed);
}

function showPlayed(row, [policy, figures]) {
  put(row.policy, policy);
  put(row.p50, milliseconds(figures.p50_ms));
  put(row.p95, milliseconds(figures.p95_ms));
  put(row.p99, milliseconds(figures.p99_ms));
  put(row.imbalance, ratio(figures.max_over_mean));
  put(row.kept, percent(figures.kept ?? NaN));
}

/** How much of the work is the heaviest sessions', in one sentence. */
function heavyText({ sessions, top_share: share, exact }, sampled) {
  let who = 'The only session is';
  if (sessions > 1) who = `The heaviest of ${count(sessions)} sessions is`;
  if (sessions > 100) who = `The heaviest 1 % of ${count(sessions)} sessions are`;
  const least = exact === false ? 'at least ' : '';
  const where = sampled < 1 ? `, in a sample of ${percent(sampled)} of the sessions` : '';
  return `${who} ${least}${percent(share)} of the work${where}.`;
}

/** Who they are: a row for each place, which is another's when another is heavier. */
function showHeavy(view, twin) {
  const top = (twin?.heavy?.top ?? []).slice(0, MOST_HEAVY);
  reveal(view.heavy, top.length > 0);
  if (top.length > 0) put(view.heavyText, heavyText(twin.heavy, twin.sampled));
  const scale = { heaviest: top[0]?.share, seconds: twin?.window_s };
  view.heaviest.show(top, (session) => top.indexOf(session), (row, session) => showHeavySession(row, session, scale));
}

function showHeavySession(row, { session, server, requests, share }, { heaviest, seconds }) {
  const rate = requests / seconds;
  put(row.session, session);
  row.bar.style.width = `${(heaviest > 0 ? (100 * share) / heaviest : 0).toFixed(1)}%`;
  put(row.value, `${percent(share)} of the work, on ${server}, ${rate > 0 && rate < 0.1 ? '<0.1' : count(rate)} requests/s`);
}

function drawPool(view) {
  const { ring } = view;
  const since = ring.at(0, TIME) - ring.at(ring.before(0, WINDOW), TIME);
  put(view.requests, since > 0 ? count(ring.growth(0, ANSWERS, WINDOW) / since) : '–');
  put(view.errors, percent(ring.growth(0, FAILURES, WINDOW) / ring.growth(0, ANSWERS, WINDOW)));
  drawImbalance(view, ring);
  drawVerdicts(view, ring);
  drawRegret(view, ring);
}

function drawImbalance(view, ring) {
  const actual = (age) => ring.at(age, ACTUAL);
  const shadow = (age) => ring.at(age, SHADOW);
  const top = highest(ring, 2, actual, shadow);
  put(view.imbalanceTop, ratio(top));
  put(view.actual, ratio(actual(0)));
  put(view.shadow, ratio(shadow(0)));
  const scaled = (of) => (age) => (of(age) - 1) / (top - 1);
  set(view.actualLine, 'd', line(ring, scaled(actual)));
  const shadowed = line(ring, scaled(shadow));
  set(view.shadowLine, 'd', shadowed);
  reveal(view.shadowLegend, shadowed !== '');
}

function drawVerdicts(view, ring) {
  const edges = edgesOf(ring, 0);
  const paths = areas(ring);
  let sticky = false;
  view.shares.forEach(({ area, share }, at) => {
    put(share, edges ? percent(edges[at + 1] - edges[at]) : '–');
    set(area, 'd', paths[at]);
    sticky ||= VERDICTS[at] !== 'none' && ring.at(0, VERDICT + at) > 0;
  });
  reveal(view.verdictsFigure, sticky);
}

function drawRegret(view, ring) {
  const known = ring.at(0, REGRETS) > 0;
  reveal(view.regretFigure, known);
  reveal(view.disagreementTile, known);
  if (!known) return;
  const mean = (age) => meanRegret(ring, age);
  const top = highest(ring, 0.001, mean);
  put(view.regretTop, milliseconds(1_000 * top));
  put(view.regret, milliseconds(1_000 * mean(0)));
  const tail = regretTail(ring, view.bounds);
  put(view.regretTail, tail === Infinity ? 'more than a minute' : milliseconds(1_000 * tail));
  put(view.disagreement, percent(ring.growth(0, DISAGREEMENTS, WINDOW) / ring.growth(0, REGRETS, WINDOW)));
  set(view.regretLine, 'd', line(ring, (age) => mean(age) / top));
}

// ---- Stores

function showStore(view, store) {
  const before = view.answers;
  view.answers = store.answers;
  put(view.name, store.name);
  put(view.state, store.answers ? 'up' : 'down');
  set(view.state, 'data-state', store.answers ? 'up' : 'down');
  const says = [];
  if (store.records != null) says.push(`${count(store.records)} records, ${bytes(store.bytes)}, ${count(store.evicted)} evicted`);
  if (store.operations > 0) says.push(`${count(store.operations)} operations, ${milliseconds((1_000 * store.took_s) / store.operations)} each`);
  if (store.errors > 0) says.push(`${count(store.errors)} errors`);
  put(view.says, says.join('; '));
  if (before !== undefined && before !== store.answers) {
    happened(`store ${store.name} ${store.answers ? 'answers again' : 'does not answer'}`);
  }
}

// ---- The page

const pools = new Views(byId('pools'), makePool);
const stores = new Views(byId('stores'), () => copy('store-template'));
const protect = new Views(byId('protect'), makeCounter);
const limits = new Views(byId('limits'), makeCounter);
let ready = null;
/** The time of the snapshot before. */
let shownAt = null;

/** Shows one snapshot. */
function show(snapshot) {
  const { time } = snapshot;
  put(byId('version'), snapshot.version ?? '');
  showReadiness(snapshot.ready);
  pools.show(snapshot.pools, (pool) => pool.name, (view, pool) => showPool(view, pool, time));
  reveal(byId('no-pools'), snapshot.pools.length === 0);
  stores.show(snapshot.stores ?? [], (store) => store.name, showStore);
  reveal(byId('stores-panel'), stores.views.size > 0);
  const ruleOf = ({ rule, decision, reason }) => `${rule}: ${reason}, ${decision}`;
  protect.show(snapshot.protect ?? [], ruleOf, (view, item) => showCounter(view, ruleOf(item), item.count, time));
  reveal(byId('protect-panel'), protect.views.size > 0);
  limits.show(Object.entries(snapshot.limits ?? {}), ([limit]) => limit, (view, [limit, total]) => showCounter(view, limit, total, time));
  reveal(byId('limits-panel'), limits.views.size > 0);
  const away = snapshot.pools.flatMap((pool) => pool.servers).filter((server) => server.state !== 'up').length;
  const title = away > 0 ? `${away} not up · steadfast` : 'steadfast';
  if (document.title !== title) document.title = title;
  announce();
  shownAt = time;
}

function showReadiness(now) {
  if (now === undefined) return;
  const node = byId('readiness');
  put(node, now ? 'ready' : 'not ready');
  set(node, 'data-state', now ? 'up' : 'down');
  reveal(node, true);
  if (ready !== null && ready !== now) happened(now ? 'The proxy is ready' : 'The proxy is not ready');
  ready = now;
}

// ---- What happened: a list for the eye, and one sentence for the ear

const events = [];
let unsaid = [];

/** Notes a change of state; it is said at the next call of `announce`. */
function happened(text) {
  events.unshift(`${new Date().toLocaleTimeString()} ${text}`);
  events.length = Math.min(events.length, MOST_EVENTS);
  const list = byId('events');
  while (list.children.length < events.length) list.append(document.createElement('li'));
  events.forEach((event, at) => put(list.children[at], event));
  reveal(byId('no-events'), false);
  unsaid.push(text);
}

function announce() {
  if (unsaid.length === 0) return;
  const said = unsaid.slice(0, 5).join('. ');
  put(byId('announcements'), unsaid.length > 5 ? `${said}. And ${unsaid.length - 5} more changes.` : `${said}.`);
  unsaid = [];
}

// ---- The API

/** An answer that is no success. */
class Refused extends Error {
  constructor(status, why) {
    super(why);
    this.status = status;
  }
}

/** How long an answer is waited for, in milliseconds. */
const PATIENCE = 10_000;

async function call(method, path, body, stop) {
  const patience = AbortSignal.timeout(PATIENCE);
  const signal = stop ? AbortSignal.any([stop, patience]) : patience;
  const options = { method, cache: 'no-store', credentials: 'same-origin', signal };
  if (body !== undefined) {
    options.headers = { 'Content-Type': 'application/json' };
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem.detail ?? problem.title ?? `The answer was ${response.status}.`);
}

// ---- The connection

let source = null;
let pause = 1;
let retry = 0;
let watch = 0;
let attempt = 0;
let wasLost = false;
let lastHeard = '';

/** Ends the stream, and every attempt at one. */
function hangUp() {
  attempt += 1;
  clearTimeout(retry);
  clearTimeout(watch);
  if (source) source.close();
  source = null;
}

/** Asks whether we are let in, then opens the stream: an EventSource does not say why it failed. */
async function connect() {
  hangUp();
  const mine = attempt;
  showConnection('connecting', 'connecting');
  try {
    await call('GET', '/api/v1/pools');
  } catch (error) {
    if (mine !== attempt) return;
    if (error.status === 401) return askForToken();
    return lost(error.status ? error.message : 'no answer');
  }
  if (mine !== attempt) return;
  source = new EventSource('/api/v1/stream');
  source.onmessage = (event) => heard(event.data);
  source.onerror = () => lost('the stream broke off, or too many are open');
  awaitNext();
}

function awaitNext() {
  clearTimeout(watch);
  watch = setTimeout(() => lost('nothing was heard for a while'), SILENCE);
}

function heard(data) {
  awaitNext();
  pause = 1;
  loggedIn = false;
  lastHeard = new Date().toLocaleTimeString();
  reveal(byId('login'), false);
  reveal(byId('live'), true);
  byId('live').classList.remove('stale');
  showConnection('live', 'live');
  if (wasLost) happened('Connected again');
  wasLost = false;
  show(JSON.parse(data));
}

/** What was known of the proxy says nothing about now. */
function knowsNothing() {
  reveal(byId('readiness'), false);
  document.title = 'not connected · steadfast';
}

function lost(why) {
  hangUp();
  knowsNothing();
  byId('live').classList.add('stale');
  if (!wasLost) happened(`Connection lost: ${why}`);
  wasLost = true;
  announce();
  const since = lastHeard ? `; figures of ${lastHeard}` : '';
  showConnection('lost', `connection lost (${why}), reconnecting${since}`);
  retry = setTimeout(connect, 1_000 * pause);
  pause = Math.min(2 * pause, LONGEST_PAUSE);
}

function showConnection(state, text) {
  // While it is lost, an attempt changes nothing yet.
  if (state === 'connecting' && wasLost) return;
  set(byId('connection'), 'data-state', state);
  put(byId('connection'), text);
}

// ---- Logging in

let loggedIn = false;

function askForToken() {
  hangUp();
  knowsNothing();
  reveal(byId('live'), false);
  if (byId('confirmation').open) byId('confirmation').close();
  wasLost = false;
  showConnection('lost', 'not logged in');
  // A cookie that is Secure needs https, or an address that the browser trusts without.
  const unkept = loggedIn && 'The token was right, but the browser did not keep the login: use https, or localhost.';
  put(byId('login-problem'), unkept || '');
  loggedIn = false;
  reveal(byId('login'), true);
  byId('token').focus();
}

async function logIn(event) {
  event.preventDefault();
  const field = byId('token');
  put(byId('login-problem'), '');
  try {
    await call('POST', '/api/v1/login', { token: field.value });
  } catch (error) {
    const wrong = error.status === 401 ? 'That is not the token.' : error.message;
    put(byId('login-problem'), wrong);
    return field.select();
  }
  field.value = '';
  loggedIn = true;
  connect();
}

// ---- What is wanted of a server

function sessionsOf(server, verb = 'stay') {
  if (server.sessions === 1) return `Its one session ${verb}s`;
  return server.sessions == null ? `Its sessions ${verb}` : `Its ${count(server.sessions)} sessions ${verb}`;
}

const DEEDS = {
  drain: {
    verb: 'Drain', method: 'POST', field: 'deadline', label: 'Deadline', value: () => '',
    hint: 'As 10m or 30s. Empty: as the pool has it configured.',
    says: (server) => `No new session goes there. ${sessionsOf(server)} there until they end, or until the deadline moves them.`,
    body: (text) => (text === '' ? {} : { deadline: text }),
  },
  ready: {
    verb: 'Make ready', method: 'POST',
    says: () => 'The operator\'s drain or maint ends. New sessions go there again as far as its health and its own word allow.',
    body: () => ({}),
  },
  maint: {
    verb: 'Put into maint', method: 'POST',
    says: (server) => `Nobody goes there any more. ${sessionsOf(server, 'move')} at once, and what is only in its memory is out of their reach.`,
    body: () => ({}),
  },
  weight: {
    verb: 'Set the weight of', method: 'PUT', field: 'weight', label: 'Weight', value: (server) => `${server.weight}`,
    hint: 'A whole number from 0 to 1000; 0: no new sessions. It holds until the file\'s changes.',
    says: (server) => `The file says ${server.configured_weight}; ${server.weight} is in force.`,
    body: (text) => ({ weight: /^\d+$/.test(text) ? Number(text) : text }),
  },
};

let deed = null;

function openDeed(kind, pool, server) {
  forgetDeed();
  const wanted = DEEDS[kind];
  const servers = `/api/v1/pools/${encodeURIComponent(pool)}/servers`;
  deed = { ...wanted, stop: new AbortController(), path: `${servers}/${encodeURIComponent(server.name)}/${kind}`, name: `${pool}/${server.name}` };
  put(byId('deed-title'), `${wanted.verb} ${deed.name}?`);
  put(byId('deed-says'), wanted.says(server));
  reveal(byId('deed-field'), wanted.field !== undefined);
  put(byId('deed-label'), wanted.label ?? '');
  put(byId('deed-hint'), wanted.hint ?? '');
  byId('deed-value').value = wanted.value ? wanted.value(server) : '';
  set(byId('deed-value'), 'inputmode', kind === 'weight' ? 'numeric' : 'text');
  put(byId('deed-problem'), '');
  put(byId('deed-do'), wanted.verb === DEEDS.weight.verb ? 'Set' : wanted.verb);
  byId('deed-do').disabled = false;
  byId('confirmation').showModal();
}

function forgetDeed() {
  // What a browser has not sent yet must not be sent later: nobody wants it any more.
  deed?.stop.abort();
  deed = null;
}

async function doDeed(event) {
  event.preventDefault();
  const mine = deed;
  const text = byId('deed-value').value.trim();
  put(byId('deed-problem'), '');
  byId('deed-do').disabled = true;
  try {
    await call(mine.method, mine.path, mine.body(text), mine.stop.signal);
    if (deed === mine) {
      deed = null;
      byId('confirmation').close();
    }
  } catch (error) {
    if (error.status === 401) return askForToken();
    if (deed === mine) put(byId('deed-problem'), error.status ? error.message : 'No answer: the proxy is gone, or too many dashboards are open in this browser.');
  } finally {
    if (deed === mine) byId('deed-do').disabled = false;
  }
}

byId('login-form').addEventListener('submit', logIn);
byId('deed-form').addEventListener('submit', doDeed);
byId('deed-cancel').addEventListener('click', () => byId('confirmation').close());
// The event comes a little later than the end: by then there may be another question.
byId('confirmation').addEventListener('close', () => {
  if (!byId('confirmation').open) forgetDeed();
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) for (const view of pools.views.values()) drawPool(view);
});
addEventListener('pagehide', hangUp);
addEventListener('pageshow', (event) => {
  if (event.persisted) connect();
});
connect();
