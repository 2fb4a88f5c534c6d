// What an SDK that was written for browserify takes from Node.
export { Buffer } from "buffer/";
