// In which order examples are learnt, and how fast.

/** The learning rate of a step as a share of the highest: a linear start, then a half cosine. */
export function rate(step, steps, warmupRatio) {
  const warm = Math.max(1, Math.round(warmupRatio * steps));
  if (step < warm) return (step + 1) / warm;
  return 0.5 * (1 + Math.cos((Math.PI * (step - warm)) / Math.max(1, steps - warm)));
}

/** The place of a step's example: every epoch shows all of them, shuffled. */
export function placeOf(step, count, seed) {
  return shuffled(count, seed * 1000003 + Math.floor(step / count))[step % count];
}

function shuffled(count, seed) {
  const random = generator(seed);
  const places = Array.from({ length: count }, (_, index) => index);
  for (let i = count - 1; i > 0; i -= 1) {
    const j = Math.floor(random() * (i + 1));
    [places[i], places[j]] = [places[j], places[i]];
  }
  return places;
}

/** Numbers from 0 to 1, the same for a seed (mulberry32, by Tommy Ettinger). */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
