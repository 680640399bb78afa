// Files of the folder and files that a person chose, as pieces that this browser keeps.
//
// A file is {path, bytes, sha256, piece_bytes, pieces: [sha256, …]}. Pieces that are there are not fetched
// again, so that a download goes on where it was stopped; one that is not what models.json says is refused.

import { rooted } from "./place.js";
import { Problem } from "./problem.js";
import { Sha256 } from "./sha256.js";
import { digest, piece, writePiece } from "./store.js";

export const PIECE_BYTES = 4 << 20;

function sizeOf(file, index) {
  return Math.min(file.piece_bytes, file.bytes - index * file.piece_bytes);
}

/** A file as a Blob that lies on the disk. What is missing is fetched; `heard(bytes)` is told of bytes that
 * are there. */
export async function opened(file, heard = () => {}) {
  const found = await Promise.all(file.pieces.map((sha256, index) => piece(sha256, sizeOf(file, index))));
  found.forEach((part) => part && heard(part.size));
  const first = found.indexOf(null);
  if (first >= 0) await fetchPieces(file, found, first, heard);
  return new Blob(found);
}

/** Whether all of a file is here. */
export async function isHere(file) {
  const found = await Promise.all(file.pieces.map((sha256, index) => piece(sha256, sizeOf(file, index))));
  return found.every(Boolean);
}

async function fetchPieces(file, found, first, heard) {
  if (!file.path) throw new Problem("a file of this model is no longer in this browser", "import the model again");
  const start = first * file.piece_bytes;
  const answer = await ask(file, start);
  const at = answer.status === 206 ? start : 0; // many servers send all of it
  const reader = answer.body.getReader();
  let index = at / file.piece_bytes;
  let [buffer, filled] = [new Uint8Array(sizeOf(file, index)), 0];
  while (index < file.pieces.length) {
    const { value, done } = await reader.read().catch(() => { throw stopped(); });
    if (done) throw stopped();
    for (let used = 0; used < value.length && index < file.pieces.length; ) {
      const count = Math.min(value.length - used, buffer.length - filled);
      buffer.set(value.subarray(used, used + count), filled);
      [used, filled] = [used + count, filled + count];
      if (filled < buffer.length) continue;
      if (!found[index]) found[index] = await keep(file, index, buffer, heard);
      index += 1;
      if (index < file.pieces.length) [buffer, filled] = [new Uint8Array(sizeOf(file, index)), 0];
    }
  }
  await reader.cancel().catch(() => {});
}

async function ask(file, start) {
  const headers = start ? { range: `bytes=${start}-` } : {};
  const answer = await fetch(rooted(file.path), { headers, cache: "no-store" }).catch(() => null);
  if (answer === null) {
    throw new Problem("the model is not in this browser yet, and the server does not answer", "connect once, and load it again");
  }
  if (!answer.ok) throw new Problem(`the server has no file of this model (${answer.status})`, "tell whoever runs the page");
  return answer;
}

const stopped = () => new Problem("the download stopped; what has come is kept", "try again");

async function keep(file, index, bytes, heard) {
  if (await digest(bytes) !== file.pieces[index]) {
    throw new Problem("the server sent another file than the one that this page belongs to",
      "close all tabs of this page and open it again: there may be a new version");
  }
  await writePiece(file.pieces[index], bytes);
  heard(bytes.length);
  return piece(file.pieces[index], bytes.length);
}

/** Keep a Blob; the file that describes it. `heard(bytes)` as above. */
export async function imported(blob, heard = () => {}) {
  const [hash, pieces] = [new Sha256(), []];
  for (let at = 0; at < blob.size; at += PIECE_BYTES) {
    const bytes = new Uint8Array(await blob.slice(at, at + PIECE_BYTES).arrayBuffer());
    hash.update(bytes);
    const sha256 = await digest(bytes);
    if (!(await piece(sha256, bytes.length))) await writePiece(sha256, bytes);
    pieces.push(sha256);
    heard(bytes.length);
  }
  return { path: null, bytes: blob.size, sha256: hash.digest(), piece_bytes: PIECE_BYTES, pieces };
}
