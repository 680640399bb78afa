// Which host this page has. Each `host-*.js` has `connect(receive)`, which resolves to `{post(request)}`.

/** The name of this page's host. A relay writes its own into the page. */
export function hostName() {
  if ("edgepack" in window) return "android";
  return document.documentElement.dataset.host || "browser";
}

/** Connect a client with the host. */
export async function connect(client) {
  const module = await import(`./host-${hostName()}.js`);
  client.host = await module.connect((event) => client.receive(event));
}
