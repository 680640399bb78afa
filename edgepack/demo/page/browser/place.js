// Where the page lies; workers have another folder.

/** The address of a file of the page. */
export const rooted = (path) => new URL(`../${path}`, import.meta.url).href;
