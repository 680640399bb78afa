// The Android app as host: it puts `edgepack.post` into the page, and calls `edgepackReceive`.

export async function connect(receive) {
  window.edgepackReceive = (event) => receive(typeof event === "string" ? JSON.parse(event) : event);
  return { post: (request) => window.edgepack.post(JSON.stringify(request)) };
}
